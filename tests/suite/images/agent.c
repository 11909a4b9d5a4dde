// An agent of the Alpine-like image: dynamic, by musl, with a library beside musl's own.
#include <stdio.h>
#include <string.h>

const char *greeting(void);

int main(void) {
    char line[512], loader[512] = "", library[512] = "";
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        char *path = strchr(line, '/');
        if (path && strstr(path, "musl")) sscanf(path, "%511s", loader);
        if (path && strstr(path, "libgreet")) sscanf(path, "%511s", library);
    }
    printf("%s, by %s and %s\n", greeting(), loader, library);
    return 0;
}
