/*
 * The lease protocol of Nimbus: control plane, agents, keepers, their clocks, and a network that loses, delays and
 * repeats. Searched exhaustively by `make model`; docs/lease-model.md says what is modelled and what is left out.
 *
 * Time is counted in ticks of the control plane's clock, and every deadline is what is left of it, so that the states
 * are finite. Each process stands at the head of its loop and each option is one indivisible step: what may happen
 * next, not how it is programmed. Every run ends, because each step uses up something: renewals, attempts, faults, time.
 *
 * -DREQUESTS=2   machine requests (1 or 2; agents are always 2)
 * -DATTEMPTS=2   leases that a request may have at all (max_attempts of outcome.py)
 * -DRENEWALS=1   renewals of one lease after the first: a job's length
 * -DFAULTS=2     crashes, freezes, repeated messages and lost replies to a finish, all in all
 *
 * -DMERGE_STARTED  a machine that has started is not told from one that has not: they end alike (test_model.py)
 * -DCLOCK_JUMPS    one more fault: the database's clock jumps forward, which is seen, and granting pauses
 * -DLONG_LEASES    renewals of a running machine may bring a longer lifetime, or again the ordinary one
 *
 * Broken on purpose, one at a time: NO_MARGIN, NO_FENCE_CHECK (finish), NO_RENEW_CHECK (renew), NO_FENCE_RAISE,
 * NO_FIRST_RENEWAL, NO_KEEPER_DEADLINE, NO_REFUSAL_OF_PAST, NO_QUESTION_AT_ADOPTION, COUNT_FROM_REPLY,
 * NO_HELD_AT_ENROLMENT, LATE_ENROLMENT, NO_PAUSE (jumps),
 * NO_GREATEST (long leases).
 */
#define AGENTS 2
#ifndef REQUESTS
#define REQUESTS 2
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 2
#endif
#ifndef RENEWALS
#define RENEWALS 1
#endif
#ifndef FAULTS
#define FAULTS 2
#endif

/*
 * What the holder counts on, and the worst that its clock makes of it: a host's clock that is slow by as much as the
 * margin lets every deadline come that much later by the control plane's clock, in which all is counted here. A clock
 * that is less slow, or fast, needs no step of its own: its VM ends earlier, and any VM may end at any time.
 */
#define DRIFT MARGIN
#ifdef NO_MARGIN
#define HOLD (TTL + DRIFT)
#else
#define HOLD (TTL - MARGIN + DRIFT)
#endif
#ifdef LONG_LEASES
#define MORE TTL /* by which the lifetime of a linked job in progress is longer */
#else
#define MORE 0
#endif

/* ---- what is true on the hosts ---- */

#define SLOTS (AGENTS * REQUESTS)
#define AT(a, r) ((a) * REQUESTS + (r)) /* agent a's dealings with request r */

/* how far agent a is with request r */
#define NOTHING 0
#define GRANTED 1 /* a grant is on its way; it may be as old as it likes when it arrives */
#define ASKING 2  /* it has arrived and is renewed at once; nothing is acquired yet */
#define HELD 3    /* renewed: the VM is being built */
#define ALIVE 4   /* the VM lives under its keeper, whatever its agent does */
#define OVER 5    /* the VM is dead, and its end has to be told */
byte phase[SLOTS];
byte under[SLOTS];   /* the fence of that lease */
byte hold[SLOTS];    /* the holder's deadline, which is the keeper's and the record's: what is left on the host's clock */
byte renewals[SLOTS];

/* the renewal that waits for its answer */
#define NONE 0
#define ASKED 1
#define AGREED 2
#define REFUSED 3
#define AGREED_LONG 4
byte renewal[SLOTS];
byte age[SLOTS];     /* since it was sent, on the host's clock */

byte stray[SLOTS];   /* fence of a finish that may arrive at any time, also long after its sender */

/* an agent's process */
#define UP 0
#define FROZEN 1
#define DOWN 2
#define ENROLLING 3  /* started anew: it reads its ledger and says which leases it still holds */
byte mode[AGENTS];

/* ---- what is true in the control plane, beside its rows ---- */

byte left[REQUESTS]; /* of the lease, on the control plane's clock */
byte faults = FAULTS;
#ifdef CLOCK_JUMPS
byte paused;         /* ticks for which nothing is granted and nothing expires: decision 0010 */
#else
#define paused 0
#endif
#define is_in_time(r) (left[r] > 0 || paused > 0) /* while that lasts, a deadline that is past tells nothing */

#define vm_alive(a, r) (phase[AT(a, r)] == ALIVE)
#define is_any_vm_of(r) (vm_alive(0, r) || vm_alive(1, r))
#include "control_plane.pml"

#define leased(r) (state[r] == LEASED || state[r] == RUNNING)
#define is_current(a, r) (leased(r) && holder[r] == a && under[AT(a, r)] == fence[r])

/* The end of a lease. The four terminal states have no step out of them (test_model.py), so that one stands for all. */
inline settle(r, event) {
    leave(r, event);
    left[r] = 0;
    if
    :: TERMINAL(state[r]) -> state[r] = DONE
    :: else
    fi
}

/* Nothing is left of these dealings, but for a message that may still be on its way. */
inline drop(s) {
    phase[s] = NOTHING;
    under[s] = 0;
    hold[s] = 0;
    renewals[s] = 0;
    renewal[s] = NONE;
    age[s] = 0
}

/* The VM is dead; the record stays until its end was told. */
inline bury(s) {
    phase[s] = OVER;
    hold[s] = 0;
    renewals[s] = 0;
    renewal[s] = NONE;
    age[s] = 0
}

inline take_answer(s) {
#ifdef COUNT_FROM_REPLY
    hold[s] = HOLD;
#else
    hold[s] = HOLD + (renewal[s] == AGREED_LONG -> MORE : 0);
    hold[s] = (hold[s] > age[s] -> hold[s] - age[s] : 0);
#endif
    renewal[s] = NONE;
    age[s] = 0;
    if
    :: hold[s] == 0 && phase[s] == ALIVE -> bury(s) /* an answer that says: it is too late */
    :: else
    fi
}

/* ---- control plane: leases.py ---- */

/* A deadline is never moved back, because its holder may not have heard of the shorter lifetime. */
#ifdef NO_GREATEST
#define prolong(r, ttl) left[r] = (ttl)
#else
#define prolong(r, ttl) left[r] = (left[r] > (ttl) -> left[r] : (ttl))
#endif

proctype requests(byte r) {
end:
    do
    /* a lease request of an agent that has room; the row, the fence and the deadline in one statement */
    :: d_step { state[r] == QUEUED && mode[0] == UP && phase[AT(0, r)] == NOTHING && fence[r] < ATTEMPTS && !paused ->
        grant(0, r); left[r] = TTL; phase[AT(0, r)] = GRANTED; under[AT(0, r)] = fence[r];
        printf("request %d: leased to agent 0, fence %d\n", r, fence[r]) }
    :: d_step { state[r] == QUEUED && mode[1] == UP && phase[AT(1, r)] == NOTHING && fence[r] < ATTEMPTS && !paused ->
        grant(1, r); left[r] = TTL; phase[AT(1, r)] = GRANTED; under[AT(1, r)] = fence[r];
        printf("request %d: leased to agent 1, fence %d\n", r, fence[r]) }
    /* nobody wants it any more */
    :: d_step { state[r] == QUEUED -> settle(r, CANCEL); printf("request %d: cancelled in the queue\n", r) }
    /* the sweeper; judge_silence of outcome.py chooses */
    :: d_step { leased(r) && !is_in_time(r) && fence[r] < ATTEMPTS -> settle(r, EXPIRE);
        printf("request %d: lease %d expired, queued again\n", r, fence[r]) }
    :: d_step { leased(r) && !is_in_time(r) -> settle(r, FINISH_BAD);
        printf("request %d: lease %d expired, failed\n", r, fence[r]) }
    :: d_step { leased(r) && !is_in_time(r) -> settle(r, LOSE);
        printf("request %d: lease %d expired, lost\n", r, fence[r]) }
    :: d_step { leased(r) && !is_in_time(r) -> settle(r, CANCEL);
        printf("request %d: lease %d expired, cancelled\n", r, fence[r]) }
    /* a renewal of the present lease arrives a second time, however late; without the fault it adds nothing */
    :: d_step { faults > 0 && leased(r) && left[r] > 0 && left[r] < TTL -> faults--; prolong(r, TTL);
        printf("request %d: a renewal of lease %d arrives again\n", r, fence[r]) }
    od
}

/* ---- one machine of an agent: machines.py, lease.py, lifecycle.py, its keeper, and the network between ---- */

/* A finish arrives: the one that the holder is saying, or a copy that outlived its sender. leases.py, _finish. */
#ifdef NO_FENCE_CHECK
#define is_accepted(a, r, f) leased(r)
#else
#define is_accepted(a, r, f) (leased(r) && holder[r] == a && (f) == fence[r] && is_in_time(r))
#endif
#define is_telling(a, r) (phase[AT(a, r)] == OVER && mode[a] == UP)

inline accept(a, r, f, event) {
    assert(f == fence[r]); /* no write under a stale fence */
    settle(r, event);
    printf("request %d: finish of agent %d under fence %d is accepted, event %d\n", r, a, f, event)
}

proctype machine(byte a; byte r) {
end:
    do
    /* the grant is lost on its way, or the agent is told to stop */
    :: d_step { phase[AT(a, r)] == GRANTED && mode[a] == UP -> drop(AT(a, r));
        printf("agent %d: the grant of request %d is lost\n", a, r) }
    /* it arrives, and is renewed before anything is acquired */
    :: d_step { phase[AT(a, r)] == GRANTED && mode[a] == UP ->
        renewals[AT(a, r)] = RENEWALS;
#ifdef NO_FIRST_RENEWAL
        phase[AT(a, r)] = HELD; hold[AT(a, r)] = HOLD;
#else
        phase[AT(a, r)] = ASKING; renewal[AT(a, r)] = ASKED;
#endif
        printf("agent %d: has the grant of request %d, fence %d\n", a, r, under[AT(a, r)]) }
    :: d_step { phase[AT(a, r)] == ASKING && renewal[AT(a, r)] == AGREED && mode[a] == UP ->
        phase[AT(a, r)] = HELD; take_answer(AT(a, r));
        printf("agent %d: holds request %d for %d ticks\n", a, r, hold[AT(a, r)]) }
    /* the keeper arms the deadline before it executes the VMM, and refuses one that has passed */
#ifdef NO_REFUSAL_OF_PAST
    :: d_step { phase[AT(a, r)] == HELD && mode[a] == UP ->
#else
    :: d_step { phase[AT(a, r)] == HELD && mode[a] == UP && hold[AT(a, r)] > 0 ->
#endif
        phase[AT(a, r)] = ALIVE;
        printf("agent %d: the VM of request %d starts under fence %d\n", a, r, under[AT(a, r)]);
        assert(is_current(a, r)); /* it acts under the one valid fence */
        assert(!vm_alive(1 - a, r)) }
    :: d_step { phase[AT(a, r)] == HELD && mode[a] == UP && hold[AT(a, r)] == 0 -> drop(AT(a, r)) }
    /* the VM ends: its job, its VMM or its keeper; supervised or not. (A boot that fails is a VM that ends at once.) */
    :: d_step { phase[AT(a, r)] == ALIVE ->
        printf("agent %d: the VM of request %d under fence %d is dead\n", a, r, under[AT(a, r)]);
        bury(AT(a, r)) }

    /* renewals, one at a time; one without an answer is given up, and another is sent */
    :: d_step { phase[AT(a, r)] == ALIVE && mode[a] == UP && renewal[AT(a, r)] == NONE && renewals[AT(a, r)] > 0 ->
        renewals[AT(a, r)]--; renewal[AT(a, r)] = ASKED }
    :: d_step { phase[AT(a, r)] == ALIVE && mode[a] == UP &&
            (renewal[AT(a, r)] == AGREED || renewal[AT(a, r)] == AGREED_LONG) ->
        take_answer(AT(a, r));
        printf("agent %d: holds request %d for %d ticks\n", a, r, hold[AT(a, r)]) }
    /* fenced: stop, write no more. A first renewal without an answer: never begun. */
    :: d_step { renewal[AT(a, r)] == REFUSED && mode[a] == UP -> drop(AT(a, r));
        printf("agent %d: gives up request %d: fenced\n", a, r) }
    :: d_step { phase[AT(a, r)] == ASKING && age[AT(a, r)] > 0 && mode[a] == UP -> drop(AT(a, r)) }

    /* renew arrives: a new lifetime, if the lease is the present one and still runs. leases.py, _renew. */
    :: d_step { renewal[AT(a, r)] == ASKED ->
        if
#ifdef NO_RENEW_CHECK
        :: leased(r) ->
#else
        :: is_current(a, r) && is_in_time(r) ->
#endif
            prolong(r, TTL);
#ifndef MERGE_STARTED
            if
            :: phase[AT(a, r)] == ALIVE && state[r] == LEASED -> state[r] = NEXT(state[r], START)
            :: else
            fi;
#endif
            renewal[AT(a, r)] = AGREED;
            printf("request %d: renewed by agent %d, fence %d\n", r, a, under[AT(a, r)])
        :: else ->
            renewal[AT(a, r)] = REFUSED; age[AT(a, r)] = 0;
            printf("request %d: a renewal of agent %d is fenced\n", r, a)
        fi }

#ifdef LONG_LEASES
    /* the same, and the job is linked and in progress: it shall outlive a control plane that is away */
    :: d_step { renewal[AT(a, r)] == ASKED && phase[AT(a, r)] == ALIVE && is_current(a, r) && is_in_time(r) ->
        prolong(r, TTL + MORE); renewal[AT(a, r)] = AGREED_LONG;
        printf("request %d: renewed for longer by agent %d, fence %d\n", r, a, under[AT(a, r)]) }
#endif

    /* finish arrives, is accepted, and the answer is heard; judge_finish of outcome.py chooses what it comes to */
    :: d_step { is_telling(a, r) && is_accepted(a, r, under[AT(a, r)]) ->
        accept(a, r, under[AT(a, r)], FINISH_OK); drop(AT(a, r)) }
    :: d_step { is_telling(a, r) && is_accepted(a, r, under[AT(a, r)]) ->
        accept(a, r, under[AT(a, r)], FINISH_BAD); drop(AT(a, r)) }
    :: d_step { is_telling(a, r) && is_accepted(a, r, under[AT(a, r)]) ->
        accept(a, r, under[AT(a, r)], LOSE); drop(AT(a, r)) }
    :: d_step { is_telling(a, r) && is_accepted(a, r, under[AT(a, r)]) ->
        accept(a, r, under[AT(a, r)], CANCEL); drop(AT(a, r)) }
    :: d_step { is_telling(a, r) && is_accepted(a, r, under[AT(a, r)]) && fence[r] < ATTEMPTS ->
        accept(a, r, under[AT(a, r)], EXPIRE); drop(AT(a, r)) }
    /* the same, but the answer is lost: it will be said again */
    :: d_step { is_telling(a, r) && is_accepted(a, r, under[AT(a, r)]) && faults > 0 ->
        faults--; accept(a, r, under[AT(a, r)], FINISH_OK) }
    :: d_step { is_telling(a, r) && is_accepted(a, r, under[AT(a, r)]) && faults > 0 && fence[r] < ATTEMPTS ->
        faults--; accept(a, r, under[AT(a, r)], EXPIRE) }
    /* said before, or fenced: nothing is written. Or the lease's deadline passes unheard: no more is said. */
    :: d_step { phase[AT(a, r)] == OVER && mode[a] == UP -> drop(AT(a, r)) }
    /* a copy of the message stays on its way */
    :: d_step { is_telling(a, r) && faults > 0 && stray[AT(a, r)] == 0 -> faults--; stray[AT(a, r)] = under[AT(a, r)] }
    :: d_step { stray[AT(a, r)] && is_accepted(a, r, stray[AT(a, r)]) ->
        accept(a, r, stray[AT(a, r)], FINISH_OK); stray[AT(a, r)] = 0 }
    :: d_step { stray[AT(a, r)] && is_accepted(a, r, stray[AT(a, r)]) && fence[r] < ATTEMPTS ->
        accept(a, r, stray[AT(a, r)], EXPIRE); stray[AT(a, r)] = 0 }
    :: d_step { stray[AT(a, r)] && !is_accepted(a, r, stray[AT(a, r)]) -> stray[AT(a, r)] = 0 }
    od
}

/* ---- an agent's process: main.py ---- */

/* What dies with the process: all that is in no record. A VM lives on, and so does the record of an end. */
inline forget(s) {
    if
    :: phase[s] == GRANTED || phase[s] == ASKING || phase[s] == HELD -> drop(s)
    :: else -> renewal[s] = NONE; age[s] = 0
    fi
}

/* An enrolment that says what is held gives up every other lease of this agent. */
#ifdef NO_HELD_AT_ENROLMENT
#define is_given_up(a, r) (leased(r) && holder[r] == a)
#else
#define is_given_up(a, r) (leased(r) && holder[r] == a && \
    !((phase[AT(a, r)] == ALIVE || phase[AT(a, r)] == OVER) && under[AT(a, r)] == fence[r]))
#endif

inline give_up(a, r) {
    if
    :: is_given_up(a, r) && fence[r] < ATTEMPTS -> settle(r, EXPIRE);
        printf("request %d: given up by agent %d\n", r, a)
    :: is_given_up(a, r) && fence[r] >= ATTEMPTS -> settle(r, FINISH_BAD);
        printf("request %d: given up by agent %d, failed\n", r, a)
    :: else
    fi
}

inline adopt(s) {
#ifdef NO_QUESTION_AT_ADOPTION
    if
    :: phase[s] == ALIVE -> hold[s] = HOLD
    :: else
    fi
#endif
    skip
}

proctype agent(byte a) {
end:
    do
    /* SIGKILL, or SIGTERM: a detach is what its tasks may do at any time, give back what was not booted, and then this */
    :: d_step { faults > 0 && (mode[a] == UP || mode[a] == FROZEN || mode[a] == ENROLLING) ->
        faults--;
        mode[a] = DOWN;
        forget(AT(a, 0));
#if REQUESTS > 1
        forget(AT(a, 1));
#endif
        printf("agent %d: dies\n", a) }
    :: d_step { mode[a] == DOWN -> mode[a] = ENROLLING; printf("agent %d: starts\n", a) }
    :: d_step { mode[a] == ENROLLING ->
        give_up(a, 0); adopt(AT(a, 0));
#if REQUESTS > 1
        give_up(a, 1); adopt(AT(a, 1));
#endif
        mode[a] = UP;
        printf("agent %d: enrolled; its living VMs are adopted\n", a) }
    /* SIGSTOP and SIGCONT, or a long stall */
    :: d_step { faults > 0 && mode[a] == UP -> faults--; mode[a] = FROZEN; printf("agent %d: freezes\n", a) }
    :: d_step { mode[a] == FROZEN -> mode[a] = UP; printf("agent %d: thaws\n", a) }
#ifdef LATE_ENROLMENT
    /* a copy of an enrolment that was thought lost arrives: it knows nothing of what was leased since */
    :: d_step { faults > 0 && mode[a] == UP && leased(0) && holder[0] == a && fence[0] < ATTEMPTS ->
        faults--; printf("agent %d: an old enrolment of it arrives\n", a); settle(0, EXPIRE) }
#endif
    od
}

/* ---- time ---- */

inline tick_lease(r) {
    if
    :: left[r] > 0 -> left[r]--
    :: else
    fi
}

inline tick_slot(s, a) {
    if
    :: hold[s] > 0 ->
        hold[s]--;
        if
#ifdef NO_KEEPER_DEADLINE
        :: hold[s] == 0 && (phase[s] == HELD || phase[s] == ALIVE) && mode[a] == UP -> drop(s)
#else
        :: hold[s] == 0 && phase[s] == HELD && mode[a] == UP -> drop(s) /* the agent's own scope */
        :: hold[s] == 0 && phase[s] == ALIVE -> bury(s)                 /* the keeper */
#endif
        :: else
        fi
    :: else
    fi;
    if
    :: renewal[s] != NONE && renewal[s] != REFUSED && age[s] < HOLD + MORE -> age[s]++
    :: else
    fi;
    /* a third of the lifetime without an answer: given up, and another may be sent */
    if
    :: phase[s] == ALIVE && age[s] * 3 >= TTL && mode[a] == UP -> renewal[s] = NONE; age[s] = 0
    :: phase[s] == ASKING && age[s] * 3 >= TTL && mode[a] == UP -> drop(s)
    :: else
    fi
}

inline tick_host(a) {
    tick_slot(AT(a, 0), a);
#if REQUESTS > 1
    tick_slot(AT(a, 1), a);
#endif
}

inline tick_control_plane() {
    tick_lease(0);
#if REQUESTS > 1
    tick_lease(1);
#endif
#ifdef CLOCK_JUMPS
    if
    :: paused > 0 -> paused--
    :: else
    fi
#endif
}

#if REQUESTS > 1
#define is_time_needed (paused || left[0] || left[1] || hold[0] || hold[1] || hold[2] || hold[3])
#define is_any_leased (leased(0) || leased(1))
#define is_done (TERMINAL(state[0]) && TERMINAL(state[1]))
#define is_any_vm (is_any_vm_of(0) || is_any_vm_of(1))
#else
#define is_time_needed (paused || left[0] || hold[0] || hold[1])
#define is_any_leased leased(0)
#define is_done TERMINAL(state[0])
#define is_any_vm is_any_vm_of(0)
#endif

proctype clock() {
end:
    do
    :: d_step { is_time_needed -> tick_control_plane(); tick_host(0); tick_host(1); printf("tick\n") }
#ifdef CLOCK_JUMPS
    /* the database's clock jumps forward, and that is seen: every lease looks overdue while its VM may live */
    :: d_step { faults > 0 && is_any_leased -> faults--; left[0] = 0;
#if REQUESTS > 1
        left[1] = 0;
#endif
#ifndef NO_PAUSE
        paused = TTL;
#endif
        printf("tick: the clock jumps\n") }
#endif
    /* nothing can happen any more: every request has ended, and nothing lives */
    :: timeout -> assert(is_done); assert(!is_any_vm); break
    od
}

init {
    atomic {
        run clock();
        run agent(0); run agent(1);
        run requests(0); run machine(0, 0); run machine(1, 0);
#if REQUESTS > 1
        run requests(1); run machine(0, 1); run machine(1, 1);
#endif
    }
}
