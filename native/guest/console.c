/* See console.h. */
#include "console.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

void say(const char *format, ...)
{
	static const char prefix[] = "nimbus-init: ";
	char line[512];
	size_t length = sizeof prefix - 1;
	va_list args;
	int wrote;

	for (size_t n = 0; n < length; n++)
		line[n] = prefix[n];
	va_start(args, format);
	wrote = vsnprintf(line + length, sizeof line - length - 1, format, args);
	va_end(args);
	if (wrote < 0)
		return;
	length += (size_t)wrote < sizeof line - length - 1 ? (size_t)wrote : sizeof line - length - 2;
	line[length++] = '\n';
	if (write(STDOUT_FILENO, line, length) < 0)
		return; /* nobody listens: there is nobody to tell */
}
