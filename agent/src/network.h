/* The guest's one network card. */
#ifndef BANGER_NETWORK_H
#define BANGER_NETWORK_H

#include "config.h"

/* lo up; the card with config's mac (else the first that is not lo) up, with its address and default route.
 * Failures are said on the console: a guest without network still serves its agent. */
void network_up(const struct config *config);

#endif
