/*
 * The control plane's rows and the only steps they take: grant, end. Shared by lease.pml, which searches all that can
 * happen, and by trace.pml, which replays what did happen. Mirrors nimbus/control_plane/leases.py and leases.sql.
 *
 * Includers define REQUESTS, AGENTS and vm_alive(agent, request), which is the world's truth and no part of a row.
 */
#include "lease_tables.pml"

byte state[REQUESTS] = QUEUED;
byte fence[REQUESTS];        /* grants so far; so it is the number of attempts too */
byte holder[REQUESTS];       /* agent of the last grant while its lease runs, else 0 */

/* What the issue calls a double run, in its strongest form: whenever a request is free, no VM of it is alive. */
inline assert_no_vm(r) {
    assert(!vm_alive(0, r));
    assert(!vm_alive(1, r))
}

/* leases.sql, grant_lease */
inline grant(a, r) {
    assert(NEXT(state[r], LEASE) != ILLEGAL);
    assert_no_vm(r);
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
    assert_no_vm(r);
    state[r] = NEXT(state[r], event);
    holder[r] = 0
}
