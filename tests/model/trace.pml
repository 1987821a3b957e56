/*
 * Drives the control plane of the model with what a real one wrote down, and its hosts with what they saw: replay.py
 * renders the steps into trace_steps.pml. One machine request after the other. A step that the model does not allow
 * fails an assertion, and the number that was printed last is its line's.
 */
#define REQUESTS 1
#define FENCES 255

bit started[FENCES];
bit alive[FENCES];
byte living;
#define is_any_vm_of(r) (living > 0)
#include "control_plane.pml"

/* steps beyond the protocol's own events */
#define QUEUE (EVENTS)          /* the next machine request */
#define ASK_CANCEL (EVENTS + 1)
#define VM_STARTED (EVENTS + 2)
#define VM_DEAD (EVENTS + 3)
#define ENDED (EVENTS + 4)      /* no more is to come of this request, and it must have ended */
#define NOBODY 0                /* the line names no agent */

chan steps = [0] of { int, byte, byte, byte, byte, byte };

active proctype control_plane() {
    int number;
    byte event, origin, target, told, agent, i;
end:
    do
    :: d_step { steps ? number, event, origin, target, told, agent ->
        printf("step %d\n", number);
        if
        :: event == QUEUE ->
            i = 0;
            do
            :: i <= fence[0] -> started[i] = 0; alive[i] = 0; i++
            :: else -> break
            od;
            state[0] = QUEUED; fence[0] = 0; holder[0] = NOBODY; living = 0;
            assert(told == 0 && target == QUEUED)
        :: event == LEASE ->
            assert(origin == state[0]);
            assert(told == fence[0] + 1); /* fences grow by one */
            grant(agent, 0);
            assert(fence[0] == told && state[0] == target)
        :: event == START ->
            assert(origin == state[0] && told == fence[0]);
            assert(agent == NOBODY || agent == holder[0]);
            assert(NEXT(state[0], START) != ILLEGAL);
            state[0] = NEXT(state[0], START);
            assert(state[0] == target)
        :: event > START && event < EVENTS ->
            assert(origin == state[0]);
            assert(told == fence[0]); /* nobody writes under a stale fence */
            assert(state[0] == QUEUED || agent == NOBODY || agent == holder[0]);
            leave(0, event);
            assert(state[0] == target)
        :: event == ASK_CANCEL ->
            assert(origin == state[0] && target == state[0] && told == fence[0]);
            assert(state[0] == LEASED || state[0] == RUNNING)
        :: event == VM_STARTED ->
            assert(state[0] == LEASED || state[0] == RUNNING);
            assert(told == fence[0] && agent == holder[0]); /* a VM starts under the one valid fence */
            assert(!started[told]); /* one VM for each lease */
            started[told] = 1; alive[told] = 1; living++
        :: event == VM_DEAD ->
            assert(started[told]);
            if
            :: alive[told] -> alive[told] = 0; living--
            :: else /* seen dead by its agent, and by the next one */
            fi
        :: event == ENDED ->
            assert(TERMINAL(state[0]) && living == 0)
        fi }
    od
}

active proctype history() {
#include "trace_steps.pml"
    printf("step -1\n")
}
