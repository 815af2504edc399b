/* Loading a module that the kernel asks for, in an image that has no program for it. */
#ifndef BANGER_MODPROBE_H
#define BANGER_MODPROBE_H

/* Have the kernel call this program, where the image has no /sbin/modprobe. */
void modprobe_offer(void);

/* Load the module of that name or alias, and what it needs. The exit status. */
int modprobe_run(const char *name);

#endif
