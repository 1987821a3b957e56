/*
 * The control plane's rows and the only steps they take: grant, end. Shared by lease.pml, which searches all that can
 * happen, and by trace.pml, which replays what did happen. Mirrors nimbus/control_plane/queue/leases.py and leases.sql.
 *
 * Includers define REQUESTS and is_any_vm_of(request), which is the world's truth and no part of a row.
 */
#include "lease_tables.pml"

byte state[REQUESTS] = QUEUED;
byte fence[REQUESTS];        /* grants so far; so it is the number of attempts too */
byte holder[REQUESTS];       /* agent of the last grant while its lease runs, else 0 */

/* leases.sql, grant_lease */
inline grant(a, r) {
    assert(NEXT(state[r], LEASE) != ILLEGAL);
    assert(!is_any_vm_of(r)); /* no double run, in its strongest form: nothing lives of a request that is free */
    state[r] = NEXT(state[r], LEASE);
#ifdef NO_FENCE_RAISE
    fence[r] = 1;
#else
    fence[r]++;
#endif
    holder[r] = a
}

/* leases.py, _end: whatever ends a lease, and the cancelling of a queued request, which has none */
inline leave(r, event) {
    assert(event != LEASE && event != START);
    assert(NEXT(state[r], event) != ILLEGAL);
    assert(!is_any_vm_of(r));
    state[r] = NEXT(state[r], event);
    holder[r] = 0
}
