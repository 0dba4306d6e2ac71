package gvisor

// umounterCode is umount2("/proc", MNT_DETACH) when there is a byte to read from
// descriptor 3. Its status is 0 when all went well.
func umounterCode() []byte {
	return append([]byte{
		0x31, 0xc0, //                               xor eax, eax       read
		0xbf, 0x03, 0x00, 0x00, 0x00, //             mov edi, 3
		0x48, 0x8d, 0x74, 0x24, 0xf8, //             lea rsi, [rsp-8]
		0xba, 0x01, 0x00, 0x00, 0x00, //             mov edx, 1
		0x0f, 0x05, //                               syscall
		0x83, 0xf8, 0x01, //                         cmp eax, 1
		0x75, 0x15, //                               jne end            with status 3
		0xb8, 0xa6, 0x00, 0x00, 0x00, //             mov eax, 166       umount2
		0x48, 0x8d, 0x3d, 0x10, 0x00, 0x00, 0x00, // lea rdi, [rip+16]  the path
		0xbe, 0x02, 0x00, 0x00, 0x00, //             mov esi, 2         MNT_DETACH
		0x0f, 0x05, //                               syscall
		0x89, 0xc7, //                               mov edi, eax       an error is its negative number
		0xb8, 0xe7, 0x00, 0x00, 0x00, //       end:  mov eax, 231       exit_group
		0x0f, 0x05, //                               syscall
	}, "/proc\x00"...)
}
