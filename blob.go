package nacre

import (
	"context"
	"io"
	"time"
)

// Blob describes a stored object.
type Blob struct {
	Key     string
	Size    int64
	ModTime time.Time
}

// BlobStore keeps big immutable objects. All methods may run at once.
//
// A key is 1 to 512 bytes: parts of [a-zA-Z0-9._-] joined by '/', no part empty,
// "." or ".."; any other is CodeInvalid. An object that does not exist is
// CodeNotFound.
type BlobStore interface {
	// Put stores what r gives until EOF. The object appears whole or not at all,
	// and survives a power cut once Put has returned. Putting a key again replaces
	// it in one step. A failed read leaves nothing.
	Put(ctx context.Context, key string, r io.Reader) (Blob, error)

	// Get opens length bytes from offset; length < 0 means to the end. An offset
	// beyond the end is CodeInvalid. A replaced or deleted object stays readable
	// to those who had it open.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)

	// Stat describes an object.
	Stat(ctx context.Context, key string) (Blob, error)

	// List calls fn for each object whose key begins with prefix, in the order of
	// keys, until fn returns an error, which it returns.
	List(ctx context.Context, prefix string, fn func(Blob) error) error

	// Delete removes an object. A missing one is no error.
	Delete(ctx context.Context, key string) error
}
