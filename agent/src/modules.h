/* Kernel modules of the initramfs. */
#ifndef BANGER_MODULES_H
#define BANGER_MODULES_H

/* Load every file listed in `list`, one path a line, in that order. A module that is there already, or that
 * finds no device, is no error; any other failure is said and the rest is tried: what needs it will say why. */
void modules_load(const char *list);

#endif
