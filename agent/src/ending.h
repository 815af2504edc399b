/* How the machine ends. */
#ifndef BANGER_ENDING_H
#define BANGER_ENDING_H

/* Signals by which pid 1 is asked, as systemd numbers them: SIGRTMIN+4 and +5 with glibc's SIGRTMIN of 34
 * (musl's own is 35, so its macro would be wrong here). The agent as init understands the same. */
#define SIGNAL_POWEROFF 38
#define SIGNAL_REBOOT 39

#define EXITRD "/run/initramfs"

/* Prepare EXITRD: the program that systemd turns to when all its services have ended. */
void ending_prepare(void);

/* As pid 1, root being EXITRD and the former root at /oldroot: unmount it, tell the host, end the machine. */
void ending_run(const char *kind) __attribute__((noreturn));

/* As pid 1 that was init itself: end every process, change to EXITRD, ending_run. */
void ending_as_init(const char *kind) __attribute__((noreturn));

/* Tell host and console why there can be no boot, and end the machine. */
void fatal(const char *message) __attribute__((noreturn));

#endif
