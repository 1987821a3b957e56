/* The C half of the vector test (tests/native/test_guestlink_vectors.py): reads lines, answers each with one.
 *
 *   parse HEX     frames from the host, as one line of words
 *   render WORDS  a frame of the guest, as hex
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../job.h"
#include "../message.h"

#define LINE_MAX_BYTES (1U << 20)
#define WORDS_MAX 32

static char line[LINE_MAX_BYTES];
static uint8_t bytes[LINE_MAX_BYTES / 2];
static uint8_t pieces[JOB_MAX];
static struct frame_reader reader;

static void print_hex(const void *from, size_t length)
{
	const uint8_t *at = from;

	for (size_t n = 0; n < length; n++)
		printf("%02x", at[n]);
}

static size_t read_hex(const char *text, uint8_t *to)
{
	size_t count = 0;

	for (; text[0] && text[1]; text += 2) {
		char pair[3] = {text[0], text[1], 0};

		to[count++] = (uint8_t)strtoul(pair, NULL, 16);
	}
	return count;
}

static void print_texts(const char *name, char **texts)
{
	printf(" %s=", name);
	for (char **text = texts; *text; text++) {
		print_hex(*text, strlen(*text));
		printf(",");
	}
}

static void print_job(size_t length)
{
	struct job job;

	if (job_parse(pieces, length, &job) != 0) {
		printf("bad job");
		return;
	}
	printf("job");
	print_texts("argv", job.argv);
	print_texts("env", job.env);
	printf(" cwd=%s user=%s timeout=%llu grace=%llu", job.cwd, job.user, (unsigned long long)job.timeout_ms,
	       (unsigned long long)job.grace_ms);
	if (job.network.wanted) {
		printf(" net=");
		print_hex(&job.network.address, 4);
		printf("/%u,", job.network.prefix);
		print_hex(&job.network.gateway, 4);
		printf(",");
		print_hex(&job.network.nameserver, 4);
	}
	printf(" host=%s clock=%llu entropy=", job.hostname, (unsigned long long)job.wall_clock_ns);
	print_hex(job.entropy, ENTROPY_BYTES);
	job_free(&job);
}

static void print_frame(const struct frame *frame)
{
	struct attach attach;
	struct prepare prepare;
	unsigned stream;
	uint64_t number;
	uint32_t total;
	uint32_t offset;
	const uint8_t *piece;
	size_t count;

	if (frame->type == ATTACH && parse_attach(frame, &attach)) {
		printf("attach %u %u ", attach.version, attach.id);
		print_hex(attach.nonce, NONCE_BYTES);
		printf(" %llu %llu %llu %llu", (unsigned long long)attach.next[0], (unsigned long long)attach.next[1],
		       (unsigned long long)attach.limit[0], (unsigned long long)attach.limit[1]);
		if (attach.flags)
			printf(" flags=%u", attach.flags);
	} else if (frame->type == PREPARE && parse_prepare(frame, &prepare)) {
		printf("prepare %llu ", (unsigned long long)prepare.wall_clock_ns);
		print_hex(prepare.entropy, ENTROPY_BYTES);
		printf(" ");
		print_hex(prepare.machine_id, MACHINE_ID_BYTES);
	} else if ((frame->type == ACK || frame->type == CREDIT) && parse_offset(frame, &stream, &number)) {
		printf("%s %u %llu", frame->type == ACK ? "ack" : "credit", stream + 1, (unsigned long long)number);
	} else if ((frame->type == STOP || frame->type == ECHO) && parse_number(frame, &number)) {
		printf("%s %llu", frame->type == STOP ? "stop" : "echo", (unsigned long long)number);
	} else if (frame->type == EXIT_ACK && frame->length == 0) {
		printf("exit_ack");
	} else if (frame->type == JOB && parse_piece(frame, &total, &offset, &piece, &count) && total <= JOB_MAX) {
		memcpy(pieces + offset, piece, count);
		if (offset + count == total)
			print_job(total);
	} else {
		printf("nonsense");
	}
}

static void parse(const char *hex)
{
	size_t length = read_hex(hex, bytes);
	struct frame frame;

	for (size_t done = 0; done < length;) {
		size_t room;
		uint8_t *space = frame_reader_space(&reader, &room);
		size_t count = length - done < room ? length - done : room;

		memcpy(space, bytes + done, count);
		frame_reader_add(&reader, count);
		done += count;
		while (frame_reader_next(&reader, &frame))
			print_frame(&frame);
	}
}

static uint64_t number(const char *word)
{
	return strtoull(word, NULL, 10);
}

static size_t render(char **words, uint8_t *out)
{
	if (strcmp(words[0], "hello") == 0) {
		struct hello hello = {.state = (enum guest_state)number(words[1]),
				      .attach_id = (uint32_t)number(words[2]),
				      .kernel_ms = (uint32_t)number(words[4]),
				      .init_ms = (uint32_t)number(words[5]),
				      .first = {number(words[6]), number(words[7])},
				      .end = {number(words[8]), number(words[9])},
				      .kernel_release = words[10],
				      .flags = (uint8_t)number(words[11])};
		read_hex(words[3], hello.nonce);
		return render_hello(out, &hello);
	}
	if (strcmp(words[0], "job_started") == 0)
		return render_job_started(out, (uint32_t)number(words[1]), (uint32_t)number(words[2]));
	if (strcmp(words[0], "heartbeat") == 0) {
		const struct heartbeat beat = {number(words[1]),
					       (enum guest_state)number(words[2]),
					       (uint32_t)number(words[3]),
					       (uint32_t)number(words[4]),
					       (uint32_t)number(words[5]),
					       (uint32_t)number(words[6]),
					       (uint32_t)number(words[7]),
					       {number(words[8]), number(words[9])},
					       {number(words[10]), number(words[11])}};
		return render_heartbeat(out, &beat);
	}
	if (strcmp(words[0], "exit") == 0) {
		struct exit_report report = {.signalled = words[1][0] == '1',
					     .reason = (enum exit_reason)number(words[2]),
					     .value = (uint32_t)number(words[3]),
					     .oom_kills = (uint16_t)number(words[4]),
					     .end = {number(words[5]), number(words[6])}};
		report.message[read_hex(words[7], (uint8_t *)report.message)] = 0;
		return render_exit(out, &report);
	}
	if (strcmp(words[0], "refused") == 0)
		return render_refused(out, (enum refusal)number(words[1]), (uint32_t)number(words[2]), words[3]);
	if (strcmp(words[0], "out") == 0) {
		size_t count = read_hex(words[3], out + OUT_DATA_AT);

		return render_out(out, (unsigned)number(words[1]) - 1, number(words[2]), count);
	}
	return render_bye(out);
}

int main(void)
{
	static uint8_t out[FRAME_MAX];
	static char empty[] = "";

	while (fgets(line, sizeof line, stdin)) {
		char *words[WORDS_MAX];
		char *rest = NULL;
		size_t count = 0;

		for (char *word = strtok_r(line, " \n", &rest); word && count < WORDS_MAX;
		     word = strtok_r(NULL, " \n", &rest))
			words[count++] = word;
		for (size_t n = count; n < WORDS_MAX; n++)
			words[n] = empty;
		if (strcmp(words[0], "parse") == 0)
			parse(words[1]);
		else
			print_hex(out, render(words + 1, out));
		printf("\n");
	}
	return 0;
}
