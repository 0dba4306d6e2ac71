package gvisor

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cmd/sandboxsetup"
)

// startUmounter starts the child that takes away /proc of the sandbox's root when
// the boot verb says so, by a byte to the file: by then the process itself may not.
// gVisor's own child is this whole program once more, whose end a start waits for.
func startUmounter() *os.File {
	if _, w, err := smallUmounter(); err == nil {
		return w
	}
	// The host has another processor, or executes nothing that is in memory.
	_, w := sandboxsetup.ExecProcUmounter()
	return w
}

func smallUmounter() (pid int, _ *os.File, err error) {
	program, err := umounterFile()
	if err != nil {
		return 0, nil, err
	}
	defer unix.Close(program)
	r, w, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer r.Close()
	files := []uintptr{0, 1, 2, r.Fd()}
	pid, err = syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(program), []string{"umount"}, &syscall.ProcAttr{Files: files})
	if err != nil {
		w.Close()
		return 0, nil, err
	}
	return pid, w, nil
}

// umounterFile returns a file in memory that holds the program.
func umounterFile() (int, error) {
	code := umounterCode()
	if code == nil {
		return -1, unix.ENOEXEC
	}
	fd, err := unix.MemfdCreate("umount", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("umount", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, program(code)); err != nil {
		return -1, err
	}
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64) // where the child moves no file to
}

// program is an executable file of nothing but the code, which runs wherever it is.
func program(code []byte) []byte {
	const base, headers = 0x400000, 64 + 56
	size := uint64(headers + len(code))
	var b bytes.Buffer
	for _, v := range []any{
		elf.Header64{
			Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
			Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
		},
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
			Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 4096,
		},
		code,
	} {
		_ = binary.Write(&b, binary.LittleEndian, v) // plain data, to memory
	}
	return b.Bytes()
}
