/* Mounting: the initramfs' own needs, the root, the change of root, the end. */
#ifndef BANGER_MOUNTS_H
#define BANGER_MOUNTS_H

#include "config.h"

/* /dev (with pts), /proc, /sys and /run of the initramfs. */
void mount_basics(void);

/* Wait for the device, mount its ext4, make `where`. NULL, or what failed. */
const char *mount_disk(const char *device, const char *where, unsigned long flags);

/* Mount the root below /newroot. NULL, or what failed, in words (errno's text included). */
const char *mount_root(const struct config *config);

/* Make /newroot the root of this process and all that share its root: moves /dev, /proc, /sys and /run over
 * and deletes the initramfs' contents. *old_root gets a descriptor of the initramfs for files to be copied
 * before initramfs_delete. NULL, or what failed. */
const char *switch_root(int *old_root);
void initramfs_delete(int old_root);

/* Mount the work disk at /root. NULL, or what failed. */
const char *mount_work(const struct config *config);

/* Unmount all that is mounted at or below `top`, the latest first. True when nothing is left. */
bool unmount_below(const char *top);

/* mkdir of the path and the folders above it, 0755; what exists is fine. */
void make_folders(const char *path);

#endif
