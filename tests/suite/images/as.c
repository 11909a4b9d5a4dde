// Executes a program as another user: AS UID PROGRAM WORDS. Static, since the images have nothing that it could stand on.
#define _GNU_SOURCE
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **words) {
    uid_t uid = count > 2 ? atoi(words[1]) : 0;
    if (uid && (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))) {
        perror("as");
        return 99;
    }
    execv(words[2], words + 2);
    perror(words[2]);
    return 98;
}
