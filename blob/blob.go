// Package blob keeps big immutable objects: in a directory of this host, or in
// memory for tests and trials. Both are nacre.BlobStores and pass the one suite.
package blob

import (
	"errors"
	"io"
	"net/url"
	"strings"
	"syscall"

	"github.com/nacrehq/nacre"
)

// Open opens the store that the address names: "file:///directory" or a plain
// path for a directory, which is made when it does not exist, and "mem:" for
// memory, which ends with the process. The error for any other is CodeInvalid
// and does not repeat the address, which may hold a credential.
func Open(address string) (nacre.BlobStore, error) {
	scheme, _, hasScheme := strings.Cut(address, ":")
	if strings.Contains(scheme, "/") {
		hasScheme = false // "./a:b" is a path
	}
	switch {
	case address == "mem:":
		return NewMemory(), nil
	case address != "" && !hasScheme:
		return OpenDir(address)
	case scheme == "file":
		u, err := url.Parse(address)
		if err == nil && (u.Host == "" || u.Host == "localhost") && strings.HasPrefix(u.Path, "/") && u.RawQuery == "" && u.Fragment == "" {
			return OpenDir(u.Path)
		}
		return nil, nacre.Invalidf("blobs", "the address of a directory is file:///path or a plain path")
	}
	return nil, nacre.Invalidf("blobs", "the blob store's address is not known; use a directory, file:///directory or mem:")
}

const maxKey = 512

// checkKey holds the contract's rule for keys.
func checkKey(key string) error {
	if len(key) == 0 || len(key) > maxKey {
		return nacre.Invalidf("key", "an object's key has 1 to %d bytes", maxKey)
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part == "." || part == ".." {
			return nacre.Invalidf("key", "a part of an object's key is empty, \".\" or \"..\"")
		}
		for i := range len(part) {
			if !keyByte(part[i]) {
				return nacre.Invalidf("key", "an object's key has characters other than letters, digits, '.', '_', '-' and '/'")
			}
		}
	}
	return nil
}

func keyByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
}

func notFound(key string) error {
	return nacre.Errorf(nacre.CodeNotFound, "object %s does not exist", key)
}

// section cuts what Get was asked for to what there is.
func section(size, offset, length int64) (n int64, err error) {
	if offset < 0 || offset > size {
		return 0, nacre.Invalidf("offset", "the offset is not inside the object, which has %d bytes", size)
	}
	if rest := size - offset; length < 0 || length > rest {
		return rest, nil
	}
	return length, nil
}

// storeError gives a full disk its code and leaves the caller's reader's errors alone.
func storeError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return nacre.Wrap(nacre.CodeNoSpace, err, "the disk of the blob store is full")
	}
	return err
}

// whileAlive ends reading with the error of a context.
type whileAlive struct {
	alive func() error
	io.Reader
}

func (r whileAlive) Read(p []byte) (int, error) {
	if err := r.alive(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
