/* The agent as pid 1 of the initramfs. */
#ifndef BANGER_INIT_H
#define BANGER_INIT_H

void init_run(char **argv) __attribute__((noreturn));

#endif
