/* nimbus-probe: the smallest guest that tells a working VMM from one that lies. 32 bits, no paging, no libc.
 *
 * Entered by the PVH boot protocol, %ebx at its start_info. Prints `nimbus-probe: up` on the first serial port, then
 * does what the first word of its kernel command line says:
 *
 *   (anything)  counts PROBE_LOOP down, prints `nimbus-probe: done` and resets through port 0x64
 *   stop        resets at once: where the count takes for ever, a test still sees a guest end
 *   idle        halts, and prints `nimbus-probe: tick N` each second, N from 1. N lies in memory, so a restored guest
 *               counts on from where its snapshot was taken
 *
 * Reads and writes nothing but the serial port, the PIT, the PIC and the reset port. Booted by `nimbus doctor` through
 * kvm.c, and by the tests of the VMM backends. Built by native/Makefile.
 */

#include "probe.h"

	.set	SERIAL, 0x3f8
	.set	SERIAL_STATUS, 0x3fd
	.set	SERIAL_EMPTY, 0x20
	.set	SERIAL_TRIES, 4096	/* then the byte goes out all the same: a port that is not there must not hang us */
	.set	KEYBOARD, 0x64
	.set	KEYBOARD_RESET, 0xfe
	.set	RESET_WAIT, 10000	/* rounds for the VMM to act on the reset before the triple fault */
	.set	START_INFO_MAGIC, 0x336ec578
	.set	START_INFO_LINE, 24	/* cmdline_paddr, 64 bits */
	.set	IDLE, 0x656c6469	/* the letters, the first one in the lowest byte */
	.set	STOP, 0x706f7473
	.set	CODE, 0x08
	.set	DATA, 0x10
	.set	PIT_MODE, 0x43
	.set	PIT_CHANNEL, 0x40
	.set	PIT_RATE, 20		/* interrupts a second; 19 is the least that 16 bits of divisor allow */
	.set	PIT_DIVISOR, 1193182 / PIT_RATE
	.set	PIC, 0x20
	.set	PIC_SECOND, 0xa0
	.set	PIC_DONE, 0x20
	.set	TIMER, 0x20		/* the vector of IRQ 0 */
	.set	SPURIOUS, 0x27		/* the vector of IRQ 7, which no mask holds back */
	.set	APIC_SPURIOUS, 0xfee000f0
	.set	APIC_ENABLED, 0x1ff	/* with vector 0xff, which never comes: nothing but the PIC is let through */
	.set	APIC_LINT0, 0xfee00350
	.set	APIC_EXTINT, 0x700

	.section .note.Xen, "a", @note
	.balign	4
	.long	4, 8, 18		/* name's size, value's size, XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.quad	probe_start

	.text
	.code32
	.globl	probe_start
probe_start:
	cli
	cld
	mov	$stack_top, %esp
	lgdt	gdt_pointer		/* the VMM's own may lie in memory that nobody promised to keep */
	ljmp	$CODE, $1f
1:	mov	$DATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$text_up, %esi
	call	print
	call	find_line
	call	read_word
	cmp	$IDLE, %eax
	je	idle
	cmp	$STOP, %eax
	je	reset

count:
	mov	$PROBE_LOOP, %ecx
1:	dec	%ecx
	jnz	1b
	mov	$text_done, %esi
	call	print

reset:
	mov	$KEYBOARD_RESET, %al
	out	%al, $KEYBOARD
	mov	$RESET_WAIT, %ecx
1:	pause
	dec	%ecx
	jnz	1b
	lidt	no_idt			/* a machine without that port: no handler for a fault, nor for that fault's */
	div	%ecx			/* by 0. Not int3: not every KVM emulates one */
2:	hlt
	jmp	2b

/* %esi: the command line, or an empty one. A VMM that gives none may leave %ebx anything. */
find_line:
	mov	$empty, %esi
	test	%ebx, %ebx
	jz	1f
	cmpl	$START_INFO_MAGIC, (%ebx)
	jne	1f
	cmpl	$0, START_INFO_LINE + 4(%ebx)
	jne	1f
	mov	START_INFO_LINE(%ebx), %eax
	test	%eax, %eax
	jz	1f
	mov	%eax, %esi
1:	ret

/* %eax: the first word at %esi where it has four letters, else 0. */
read_word:
	lodsb
	cmp	$' ', %al
	je	read_word
	dec	%esi
	lodsl
	mov	(%esi), %dl
	cmp	$' ', %dl
	je	1f
	test	%dl, %dl
	jz	1f
	xor	%eax, %eax
1:	ret

/* The text at %esi. Changes %eax, %ecx, %edx, %esi. */
print:
	lodsb
	test	%al, %al
	jz	3f
	mov	%al, %ah
	mov	$SERIAL_STATUS, %edx
	mov	$SERIAL_TRIES, %ecx
1:	in	%dx, %al
	test	$SERIAL_EMPTY, %al
	jnz	2f
	dec	%ecx
	jnz	1b
2:	mov	%ah, %al
	mov	$SERIAL, %edx
	out	%al, %dx
	jmp	print
3:	ret

idle:
	mov	$TIMER, %ebx
	mov	$on_timer, %eax
	call	set_gate
	mov	$SPURIOUS, %ebx
	mov	$on_spurious, %eax
	call	set_gate
	lidt	idt_pointer
	call	start_timer
wait:
	sti				/* takes effect after hlt: no interrupt slips in between and is slept over */
	hlt
woken:
	cmpl	$PIT_RATE, beats
	jb	wait
	subl	$PIT_RATE, beats
	incl	ticks
	mov	$text_tick, %esi
	call	print
	mov	ticks, %eax
	call	print_number
	jmp	wait

/* Vector %ebx of the IDT goes to %eax. */
set_gate:
	mov	%ax, idt(,%ebx,8)
	movw	$CODE, idt + 2(,%ebx,8)
	movw	$0x8e00, idt + 4(,%ebx,8)	/* present, 32-bit interrupt gate */
	shr	$16, %eax
	mov	%ax, idt + 6(,%ebx,8)
	ret

/* Firmware would let the PIC's interrupts through the local APIC; some VMMs have none. */
start_timer:
	movl	$APIC_ENABLED, APIC_SPURIOUS
	movl	$APIC_EXTINT, APIC_LINT0
	mov	$pic_words, %esi
	xor	%edx, %edx
1:	lodsw				/* port, value */
	test	%al, %al
	jz	2f
	mov	%al, %dl
	mov	%ah, %al
	out	%al, %dx
	jmp	1b
2:	ret

/* Interrupts come out of that hlt alone, so their frames are dropped without an iret: not every KVM emulates it. */
on_timer:
	incl	beats
	mov	$PIC_DONE, %al
	out	%al, $PIC
on_spurious:
	add	$12, %esp
	jmp	woken

/* %eax in decimal and a line's end. */
print_number:
	mov	$digits_end, %esi
	mov	$10, %ecx
1:	xor	%edx, %edx
	div	%ecx
	add	$'0', %dl
	dec	%esi
	mov	%dl, (%esi)
	test	%eax, %eax
	jnz	1b
	jmp	print

	.data
	.balign	8
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff	/* code, flat 4 GiB */
	.quad	0x00cf93000000ffff	/* data, flat 4 GiB */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt
idt_pointer:
	.word	idt_end - idt - 1
	.long	idt
no_idt:
	.word	0
	.long	0

/* Both PICs: begin, first vector, who sits where, 8086 mode, masks (the timer alone). The PIT: mode 2, its rate. */
pic_words:
	.byte	PIC, 0x11, PIC_SECOND, 0x11
	.byte	PIC + 1, TIMER, PIC_SECOND + 1, TIMER + 8
	.byte	PIC + 1, 4, PIC_SECOND + 1, 2
	.byte	PIC + 1, 1, PIC_SECOND + 1, 1
	.byte	PIC + 1, 0xfe, PIC_SECOND + 1, 0xff
	.byte	PIT_MODE, 0x34, PIT_CHANNEL, PIT_DIVISOR & 0xff, PIT_CHANNEL, PIT_DIVISOR >> 8
	.byte	0, 0

text_up:
	.asciz	"nimbus-probe: up\n"
text_done:
	.asciz	"nimbus-probe: done\n"
text_tick:
	.asciz	"nimbus-probe: tick "
empty:
	.long	0, 0			/* as long as what read_word reads */
digits:
	.skip	10
digits_end:
	.asciz	"\n"
	.balign	4
beats:
	.long	0
ticks:
	.long	0
	.balign	8
idt:
	.skip	8 * (SPURIOUS + 1)
idt_end:
	.skip	4096
stack_top:

	.section .note.GNU-stack, "", @progbits
