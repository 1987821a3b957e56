/* Words for people: one line on standard output, which is the console in a guest. Never an argument, an environment
 * or a byte of output of a job.
 */
#ifndef NIMBUS_GUEST_CONSOLE_H
#define NIMBUS_GUEST_CONSOLE_H

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
