/* Folders of the root that cannot lie on an overlay: kernel modules from their disk, containers' stores. */
#ifndef BANGER_STORES_H
#define BANGER_STORES_H

#include "config.h"

/* Where mount_root leaves the overlay's own disk until stores_mount has taken what it needs; it moves with
 * /run to the new root. */
#define OVERLAY_DISK "/run/banger/overlay"

/* In the new root: /lib/modules/<release> and the containers' stores; then lets go of both disks. What fails
 * is said, and left as the image has it. */
void stores_mount(const struct config *config);

#endif
