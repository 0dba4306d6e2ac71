package firecracker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// ProbeArg, as a program's first argument, asks it to call ProbeMain and nothing
// else. The probe runs in a process of its own because a processor that hangs in
// KVM_RUN does so in the kernel.
const ProbeArg = "kvm-probe"

// probeTimeout is generous: a host that can takes 5 ms.
const probeTimeout = 10 * time.Second

// Probe tells whether this host's KVM really runs a guest, and says in words what is
// wrong when it does not. program answers ProbeArg. A present /dev/kvm proves
// nothing: there are hosts where it hangs, and hosts that emulate the guest's kernel
// and lack instructions that every kernel needs.
func Probe(ctx context.Context, program string) error {
	if runtime.GOARCH != "amd64" {
		return nacre.Errorf(nacre.CodeUnsupported, "Firecracker machines are offered on amd64 only")
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nacre.Wrap(nacre.CodeUnavailable, err, "this host has no /dev/kvm: its processor's virtualization is off in the firmware, not passed on to this virtual machine, or the kvm module is not loaded")
	case err != nil:
		return nacre.Wrap(nacre.CodeUnavailable, err, "/dev/kvm cannot be opened; run nacre as root")
	}
	f.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, program, ProbeArg)
	c.WaitDelay = time.Second
	out, err := c.CombinedOutput()
	if ctx.Err() != nil {
		return nacre.Wrap(nacre.CodeUnavailable, ctx.Err(), fmt.Sprintf("/dev/kvm is there, but a guest of six instructions did not end within %v: the host's virtualization hangs", probeTimeout))
	}
	if err != nil {
		return nacre.Wrap(nacre.CodeUnavailable, err, "/dev/kvm is there, but does not run guests: "+strings.TrimSpace(string(out)))
	}
	return nil
}

// ProbeMain runs the probe and returns the exit code.
func ProbeMain() int {
	if err := probe(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// The ioctls of linux/kvm.h.
const (
	kvmGetAPIVersion  = 0xae00
	kvmCreateVM       = 0xae01
	kvmVCPUMmapSize   = 0xae04
	kvmCreateVCPU     = 0xae41
	kvmSetUserMemory  = 0x4020ae46
	kvmRun            = 0xae80
	kvmSetRegs        = 0x4090ae82
	kvmGetSregs       = 0x8138ae83
	kvmSetSregs       = 0x4138ae84
	kvmGetSupportedID = 0xc008ae05
	kvmSetCPUID       = 0x4008ae90

	exitIO  = 2
	exitHLT = 5
)

// probeCode is 64-bit guest code of the sort that kernels are full of, and that a KVM
// which interprets the guest's kernel fails at: it counts bits, compares and
// exchanges sixteen bytes, and writes the result to port 0x10.
//
//	mov eax, 0xff; popcnt eax, eax; lock cmpxchg16b [0x2000]; out 0x10, al; hlt
var probeCode = [...]byte{
	0xb8, 0xff, 0x00, 0x00, 0x00, // mov eax, 0xff
	0xf3, 0x0f, 0xb8, 0xc8, // popcnt ecx, eax
	0x89, 0xcb, // mov ebx, ecx
	0x31, 0xc0, // xor eax, eax
	0x31, 0xd2, // xor edx, edx
	0x31, 0xc9, // xor ecx, ecx
	0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x00, 0x20, 0x00, 0x00, // lock cmpxchg16b [0x2000]
	0x8a, 0x04, 0x25, 0x00, 0x20, 0x00, 0x00, // mov al, [0x2000]
	0xe6, 0x10, // out 0x10, al
	0xf4, // hlt
}

const probeWant = 8 // the bits of 0xff

func ioctl(fd int, req, arg uintptr) (int, error) {
	for {
		r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return 0, e
		}
		return int(r), nil
	}
}

// probe runs the program on a processor of its own.
func probe() error {
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/kvm: %w", err)
	}
	defer unix.Close(kvm)
	if v, err := ioctl(kvm, kvmGetAPIVersion, 0); err != nil || v != 12 {
		return fmt.Errorf("its interface has version %d (%v), want 12", v, err)
	}
	vm, err := ioctl(kvm, kvmCreateVM, 0)
	if err != nil {
		return fmt.Errorf("no virtual machine can be made: %w", err)
	}
	defer unix.Close(vm)
	mem, err := guestMemory(vm)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(mem) }()
	vcpu, err := ioctl(vm, kvmCreateVCPU, 0)
	if err != nil {
		return fmt.Errorf("no virtual processor can be made: %w", err)
	}
	defer unix.Close(vcpu)
	if err := passCPUID(kvm, vcpu); err != nil {
		return fmt.Errorf("the processor's features: %w", err)
	}
	if err := longMode(vcpu, mem); err != nil {
		return fmt.Errorf("the processor's registers: %w", err)
	}
	size, err := ioctl(kvm, kvmVCPUMmapSize, 0)
	if err != nil {
		return err
	}
	run, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(run) }()
	return follow(vcpu, run)
}

// follow runs the processor until it halts.
func follow(vcpu int, run []byte) error {
	got := -1
	for range 4 {
		if _, err := ioctl(vcpu, kvmRun, 0); err != nil {
			return fmt.Errorf("the guest cannot be run: %w", err)
		}
		switch reason := binary.LittleEndian.Uint32(run[8:]); reason {
		case exitIO:
			got = int(run[binary.LittleEndian.Uint64(run[32+8:])]) // kvm_run.io.data_offset
		case exitHLT:
			if got != probeWant {
				return fmt.Errorf("the guest computed %d, want %d: instructions are emulated, and wrongly", got, probeWant)
			}
			return nil
		default:
			return fmt.Errorf("the guest stopped for reason %d at ordinary instructions: the host emulates them and lacks some", reason)
		}
	}
	return errors.New("the guest does not halt")
}

func guestMemory(vm int) ([]byte, error) {
	const size = 64 << 10
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	region := struct {
		slot, flags              uint32
		guest, size, userAddress uint64
	}{size: size, userAddress: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if _, err := ioctl(vm, kvmSetUserMemory, uintptr(unsafe.Pointer(&region))); err != nil {
		_ = unix.Munmap(mem)
		return nil, fmt.Errorf("memory of a guest: %w", err)
	}
	return mem, nil
}

// passCPUID gives the processor the features that the host offers.
func passCPUID(kvm, vcpu int) error {
	var id struct {
		n, _    uint32
		entries [256][10]uint32
	}
	id.n = uint32(len(id.entries))
	if _, err := ioctl(kvm, kvmGetSupportedID, uintptr(unsafe.Pointer(&id))); err != nil {
		return err
	}
	_, err := ioctl(vcpu, kvmSetCPUID, uintptr(unsafe.Pointer(&id)))
	return err
}

// kvmSegment and kvmSregs are those of asm/kvm.h.
type kvmSegment struct {
	base                         uint64
	limit                        uint32
	selector                     uint16
	kind, present, dpl, db, s, l uint8
	g, avl, unusable, _          uint8
}

type kvmSregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt kvmSegment
	gdt, idt                        [2]uint64
	cr0, cr2, cr3, cr4, cr8, efer   uint64
	apicBase                        uint64
	interrupts                      [4]uint64
}

// longMode puts the processor at the program in 64-bit mode: page tables at 0x4000
// map the first 2 MiB onto themselves, the program is at 0x1000.
func longMode(vcpu int, mem []byte) error {
	const presentWritable, hugePage = 3, 1 << 7
	le := binary.LittleEndian
	le.PutUint64(mem[0x4000:], 0x5000|presentWritable)
	le.PutUint64(mem[0x5000:], 0x6000|presentWritable)
	le.PutUint64(mem[0x6000:], presentWritable|hugePage)
	copy(mem[0x1000:], probeCode[:])
	var s kvmSregs
	if _, err := ioctl(vcpu, kvmGetSregs, uintptr(unsafe.Pointer(&s))); err != nil {
		return err
	}
	s.cr3, s.cr4 = 0x4000, 1<<5
	s.cr0 = 1<<31 | 1<<4 | 1
	s.efer = 1<<10 | 1<<8
	s.cs = kvmSegment{limit: 0xffffffff, selector: 8, kind: 11, present: 1, s: 1, l: 1, g: 1}
	data := kvmSegment{limit: 0xffffffff, selector: 16, kind: 3, present: 1, db: 1, s: 1, g: 1}
	s.ds, s.es, s.fs, s.gs, s.ss = data, data, data, data, data
	if _, err := ioctl(vcpu, kvmSetSregs, uintptr(unsafe.Pointer(&s))); err != nil {
		return err
	}
	var regs [18]uint64
	regs[16], regs[17] = 0x1000, 2 // rip, rflags
	_, err := ioctl(vcpu, kvmSetRegs, uintptr(unsafe.Pointer(&regs)))
	return err
}
