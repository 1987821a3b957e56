/* written by tests/model/generate.py from nimbus/model/lease.py: change that, and run it again */

#define TTL 4 /* ticks that a lease lasts on the control plane's clock */
#define MARGIN 1 /* ticks by which its holder stops earlier */

#define QUEUED 0
#define LEASED 1
#define RUNNING 2
#define DONE 3
#define FAILED 4
#define CANCELLED 5
#define LOST 6
#define ILLEGAL 7

#define LEASE 0
#define START 1
#define FINISH_OK 2
#define FINISH_BAD 3
#define CANCEL 4
#define EXPIRE 5
#define LOSE 6
#define EVENTS 7

#define TERMINAL(state) ((state) == DONE || (state) == FAILED || (state) == CANCELLED || (state) == LOST)

#define NEXT(state, event) ( \
    ((state) == QUEUED && (event) == LEASE) -> LEASED : ( \
    ((state) == QUEUED && (event) == CANCEL) -> CANCELLED : ( \
    ((state) == LEASED && (event) == START) -> RUNNING : ( \
    ((state) == LEASED && (event) == FINISH_OK) -> DONE : ( \
    ((state) == LEASED && (event) == FINISH_BAD) -> FAILED : ( \
    ((state) == LEASED && (event) == CANCEL) -> CANCELLED : ( \
    ((state) == LEASED && (event) == EXPIRE) -> QUEUED : ( \
    ((state) == LEASED && (event) == LOSE) -> LOST : ( \
    ((state) == RUNNING && (event) == FINISH_OK) -> DONE : ( \
    ((state) == RUNNING && (event) == FINISH_BAD) -> FAILED : ( \
    ((state) == RUNNING && (event) == CANCEL) -> CANCELLED : ( \
    ((state) == RUNNING && (event) == EXPIRE) -> QUEUED : ( \
    ((state) == RUNNING && (event) == LOSE) -> LOST : ( \
    ILLEGAL ))))))))))))))
