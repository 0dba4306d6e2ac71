// Package wire is what the driver and the first program of its guests, guestinit,
// say to each other: the boot parameters, the control port and the last word.
package wire

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
)

// Port is the vsock port that guestinit listens on. A connection begins with one
// line of the host's: "dial PORT", "sync", "ping", "free", "used", "freeze", "clock
// NANOSECONDS", or "restored JSON" with a Restored. The answer is the line "ok" or "no
// REASON". After "dial" and "ok" the connection is one to that TCP port of the guest;
// after "free" and "ok" comes a line with the guest's free memory in MiB, after "used" one
// with what is in use of the upper drive; after "freeze" come the extents that are not (see
// WriteExtents), of a file system that stands still until the host says one more line,
// of which the answer is "ok" too.
const Port = 1024

// DialPort is the TCP port on which guestinit takes the same lines from HostAddr, and
// "dial" comes by: connections over vsock end with every snapshot, also for the guest
// that goes on.
const DialPort = 49982

// MaxLine bounds every line in either direction, in bytes.
const MaxLine = 8192

// The guest's network inside its namespace is the same for every machine, so that
// a snapshot can be restored in any slot: what the namespace sends on carries the
// slot's address.
const (
	GuestAddr = "172.16.0.2"
	HostAddr  = "172.16.0.1"
	Bits      = 30
	GuestMAC  = "02:fc:00:00:00:01"
	HostMAC   = "02:fc:00:00:00:02"
)

// The guest's drives, in the order in which the driver attaches them, behind the one
// that it boots from: EROFS, with guestinit and the agent.
const (
	RootDrive  = "/dev/vdb" // EROFS: the template
	UpperDrive = "/dev/vdc" // ext4, and behind it the last word
)

// Boot is what the guest must know before anybody can tell it.
type Boot struct {
	Hostname string
	MaxPIDs  int
	MTU      int
	UpperMiB int
}

// bootKey precedes Boot on the kernel's command line.
const bootKey = "nacre="

// CommandLine returns the boot parameters as one word of a kernel command line.
func (b Boot) CommandLine() string {
	j, err := json.Marshal(b)
	if err != nil {
		panic(err) // plain data
	}
	return bootKey + base64.RawURLEncoding.EncodeToString(j)
}

// ParseBoot finds the boot parameters among a command line's words.
func ParseBoot(words []string) (b Boot, err error) {
	for _, w := range words {
		if len(w) > len(bootKey) && w[:len(bootKey)] == bootKey {
			j, err := base64.RawURLEncoding.DecodeString(w[len(bootKey):])
			if err != nil {
				return b, err
			}
			return b, json.Unmarshal(j, &b)
		}
	}
	return b, errors.New("the command line has no boot parameters")
}

// Restored tells a guest that time has passed.
type Restored struct {
	Hostname string
	UnixNano int64  // the wall clock
	Entropy  []byte // never used twice
}

// LastWord is how the guest says why it ends. It stands in the last 4 KiB of the
// upper drive, behind the file system, where a host finds it that was not there at
// the time. The guest's root can write it too: it is believed about nothing else.
type LastWord struct {
	OOM    bool   // the guest's kernel had no memory left
	Exited bool   // the agent exited, with Status; else Signal killed it
	Status int    // 0 to 255
	Signal int    // 1 to 64
	Failed string // the guest did not get as far as the agent
}

// LastWordSize is the room for it.
const LastWordSize = 4096

const lastMagic = 0x4e414352

// Encode returns a block of LastWordSize bytes.
func (l LastWord) Encode() []byte {
	if len(l.Failed) > 1000 {
		l.Failed = l.Failed[:1000]
	}
	j, err := json.Marshal(l)
	if err != nil {
		panic(err) // plain data
	}
	b := make([]byte, LastWordSize)
	binary.LittleEndian.PutUint32(b, lastMagic)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(j)))
	binary.LittleEndian.PutUint32(b[8:], crc32.ChecksumIEEE(j))
	copy(b[12:], j)
	return b
}

// DecodeLastWord reads a block that may hold anything.
func DecodeLastWord(b []byte) (l LastWord, ok bool) {
	if len(b) < LastWordSize || binary.LittleEndian.Uint32(b) != lastMagic {
		return l, false
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if n > LastWordSize-12 {
		return l, false
	}
	j := b[12 : 12+n]
	if crc32.ChecksumIEEE(j) != binary.LittleEndian.Uint32(b[8:]) || json.Unmarshal(j, &l) != nil {
		return LastWord{}, false
	}
	if l.Status < 0 || l.Status > 255 || l.Signal < 0 || l.Signal > 64 {
		return LastWord{}, false
	}
	return l, true
}
