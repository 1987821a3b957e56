/* What the tiny guest and the program that boots it must agree on; for the assembler too, so numbers only. */
#ifndef NIMBUS_PROBE_H
#define NIMBUS_PROBE_H

#define PROBE_LOOP 30000000 /* about 10 ms of a CPU of this decade: long beside a VM exit, short beside a patience */

#endif
