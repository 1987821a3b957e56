/* The KVM side of the probe: loads the tiny guest, makes a machine for it and runs it. See machine.h. */
#include "machine.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SERIAL 0x3f8
#define SERIAL_STATUS 0x3fd
#define SERIAL_EMPTY 0x60 /* both of its buffers: the guest may send */
#define KEYBOARD 0x64
#define KEYBOARD_RESET 0xfe
#define NO_DEVICE 0xff
#define PROTECTED_MODE 1u  /* CR0.PE */
#define FLAGS_AT_RESET 2u  /* the bit of RFLAGS that is always set */
#define TSS_ADDRESS 0xfffbd000ul /* three pages that Intel's KVM wants, where no memory is */
#define IMAGE_MAX (1u << 20)

static int copy_segments(const uint8_t *image, size_t size, uint8_t *memory, uint64_t *entry)
{
    Elf64_Ehdr head;
    if (size < sizeof head)
        return -ENOEXEC;
    memcpy(&head, image, sizeof head);
    if (memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_ident[EI_CLASS] != ELFCLASS64 ||
        head.e_phentsize != sizeof(Elf64_Phdr) || head.e_entry >= MACHINE_BYTES || head.e_phoff > size ||
        head.e_phnum > (size - head.e_phoff) / sizeof(Elf64_Phdr))
        return -ENOEXEC;
    for (size_t i = 0; i < head.e_phnum; i++) {
        Elf64_Phdr part;
        memcpy(&part, image + head.e_phoff + i * sizeof part, sizeof part);
        if (part.p_type != PT_LOAD)
            continue;
        if (part.p_offset > size || part.p_filesz > size - part.p_offset || part.p_paddr > MACHINE_BYTES ||
            part.p_filesz > MACHINE_BYTES - part.p_paddr)
            return -ENOEXEC;
        memcpy(memory + part.p_paddr, image + part.p_offset, part.p_filesz);
    }
    *entry = head.e_entry;
    return 0;
}

int load_image(const char *path, uint8_t *memory, uint64_t *entry)
{
    static uint8_t image[IMAGE_MAX];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    size_t size = 0;
    ssize_t got = 0;
    while (size < sizeof image && (got = read(fd, image + size, sizeof image - size)) > 0)
        size += (size_t)got;
    int error = got < 0 ? -errno : 0;
    close(fd);
    return error != 0 ? error : copy_segments(image, size, memory, entry);
}

int make_machine(int vm, size_t run_bytes, struct machine *machine)
{
    void *memory = mmap(NULL, MACHINE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    machine->memory = memory;
    struct kvm_userspace_memory_region region = {
        .memory_size = MACHINE_BYTES, .userspace_addr = (uint64_t)(uintptr_t)memory};
    if (ioctl(vm, KVM_SET_TSS_ADDR, TSS_ADDRESS) < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        return -errno;
    machine->vcpu = ioctl(vm, KVM_CREATE_VCPU, 0ul);
    if (machine->vcpu < 0)
        return -errno;
    void *run = mmap(NULL, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, machine->vcpu, 0);
    if (run == MAP_FAILED)
        return -errno;
    machine->run = run;
    return 0;
}

/* 32-bit protected mode with flat segments and no paging, as PVH enters its kernels. %ebx is 0: no command line. */
int set_entry(const struct machine *machine, uint64_t entry)
{
    struct kvm_sregs sregs;
    if (ioctl(machine->vcpu, KVM_GET_SREGS, &sregs) < 0)
        return -errno;
    struct kvm_segment code = {
        .limit = 0xffffffff, .selector = 0x08, .type = 0xb, .present = 1, .db = 1, .s = 1, .g = 1};
    struct kvm_segment data = code;
    data.selector = 0x10;
    data.type = 0x3;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.cr0 |= PROTECTED_MODE;
    struct kvm_regs regs = {.rip = entry, .rflags = FLAGS_AT_RESET};
    if (ioctl(machine->vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(machine->vcpu, KVM_SET_REGS, &regs) < 0)
        return -errno;
    return 0;
}

static void hear(struct machine *machine, uint8_t byte)
{
    if (machine->said_length + 1 < sizeof machine->said) {
        machine->said[machine->said_length++] = (char)byte;
        machine->said[machine->said_length] = '\0';
    }
}

static bool has_said(const struct machine *machine, const char *awaited)
{
    size_t length = strlen(awaited);
    return machine->said_length >= length &&
           memcmp(machine->said + machine->said_length - length, awaited, length) == 0;
}

/* One access of a port: true where it was the reset. */
static bool serve_port(struct machine *machine)
{
    struct kvm_run *run = machine->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    bool is_reset = false;
    for (uint32_t i = 0; i < run->io.count * run->io.size; i++) {
        if (run->io.direction == KVM_EXIT_IO_IN)
            data[i] = run->io.port == SERIAL_STATUS ? SERIAL_EMPTY : NO_DEVICE;
        else if (run->io.port == SERIAL)
            hear(machine, data[i]);
        else if (run->io.port == KEYBOARD && data[i] == KEYBOARD_RESET)
            is_reset = true;
    }
    return is_reset;
}

enum stop run_until(struct machine *machine, const char *awaited)
{
    for (;;) {
        machine->error = ioctl(machine->vcpu, KVM_RUN, 0ul) < 0 ? -errno : 0;
        machine->exit_reason = machine->run->exit_reason;
        if (machine->error != 0)
            return machine->error == -EINTR ? STOP_TIME : STOP_FAULT;
        if (machine->exit_reason != KVM_EXIT_IO)
            return STOP_FAULT;
        if (serve_port(machine))
            return STOP_RESET;
        if (awaited != NULL && has_said(machine, awaited))
            return STOP_SPEECH;
    }
}

int read_counter(const struct machine *machine, uint64_t *left)
{
    struct kvm_regs regs;
    if (ioctl(machine->vcpu, KVM_GET_REGS, &regs) < 0)
        return -errno;
    *left = (uint32_t)regs.rcx;
    return 0;
}
