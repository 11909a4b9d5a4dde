// A library of the Alpine-like image.
const char *greeting(void) { return "greetings"; }
