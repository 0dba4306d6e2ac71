package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What linux/sock_diag.h, linux/inet_diag.h and net/tcp_states.h say. Numbers are the
// processor's, ports and addresses the network's.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21

	diagReqLen = 56 // struct inet_diag_req_v2
	diagMsgLen = 72 // struct inet_diag_msg
	sockIDLen  = 48 // struct inet_diag_sockid, which both hold
	reqID      = 8  // where in them
	msgID      = 4

	// Established, or closed by one side: what waits for the other. A connection that is
	// only asked for is asked for again, from where the guest is now.
	midway = 1<<1 | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11
)

// endConnections ends the guest's TCP connections with others, who know nothing of a
// guest that was restored: what waits for them gets ECONNABORTED, and would else wait
// for ever. Those within the guest go on. With a kernel that cannot (it was made without
// INET_DIAG_DESTROY, or without INET_DIAG) all go on.
func endConnections() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err == unix.EPROTONOSUPPORT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sock_diag: %w", err)
	}
	defer unix.Close(fd)
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		ids, err := connections(fd, family)
		if err == unix.ENOENT { // nobody answers for this family
			continue
		}
		if err != nil {
			return fmt.Errorf("connections of family %d: %w", family, err)
		}
		for _, id := range ids {
			// One that ended meanwhile is not there, or another one's by its cookie.
			err := destroy(fd, family, id)
			if err == unix.EOPNOTSUPP {
				return nil
			}
			if err != nil && err != unix.ENOENT {
				return fmt.Errorf("end of a connection: %w", err)
			}
		}
	}
	return nil
}

// sockID names a connection: ports, addresses, interface and cookie.
type sockID [sockIDLen]byte

// outside is whether the other end is not in this guest.
func (id sockID) outside(family byte) bool {
	own, peer := id[4:20], id[20:36]
	loopback := peer[0] == 127
	if family == unix.AF_INET6 {
		mapped := [12]byte{10: 0xff, 11: 0xff}
		loopback = [16]byte(peer) == [16]byte{15: 1} || [12]byte(peer) == mapped && peer[12] == 127
	}
	return !loopback && [16]byte(own) != [16]byte(peer)
}

// connections lists those with others.
func connections(fd int, family byte) (ids []sockID, err error) {
	req := make([]byte, diagReqLen)
	req[0], req[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[4:], midway)
	err = ask(fd, sockDiagByFamily, unix.NLM_F_DUMP, req, func(b []byte) {
		if len(b) < diagMsgLen {
			return
		}
		if id := sockID(b[msgID:]); id.outside(family) {
			ids = append(ids, id)
		}
	})
	return ids, err
}

func destroy(fd int, family byte, id sockID) error {
	req := make([]byte, diagReqLen)
	req[0], req[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[4:], midway)
	copy(req[reqID:], id[:])
	return ask(fd, sockDestroy, unix.NLM_F_ACK, req, func([]byte) {})
}

// ask sends one request and hands out what comes back, until that is over.
func ask(fd int, kind, flags uint16, body []byte, each func([]byte)) error {
	msg := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(body))
	binary.NativeEndian.PutUint32(msg, uint32(cap(msg)))
	binary.NativeEndian.PutUint16(msg[4:], kind)
	binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST|flags)
	if err := unix.Sendto(fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return errors.New("a message of a wrong length")
			}
			payload := b[unix.NLMSG_HDRLEN:size]
			switch binary.NativeEndian.Uint16(b[4:]) {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR: // 0 is the acknowledgement
				if len(payload) < 4 {
					return errors.New("a message of a wrong length")
				}
				if e := -int32(binary.NativeEndian.Uint32(payload)); e != 0 {
					return unix.Errno(e)
				}
				return nil
			default:
				each(payload)
			}
			b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
		}
	}
}
