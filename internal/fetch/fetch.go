// Package fetch brings a file that is known by its sum, from the network or, where
// that is closed, from a path.
package fetch

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/sparse"
)

// Source says where a file comes from and what it must be.
type Source struct {
	What   string // for messages, such as "the release"
	Advice string // what to do where it cannot be had; may be ""

	From   string // a path, or an https URL
	SHA256 string // in hex; "" only of a path, which is then taken as it is
	Max    int64  // bytes; a longer download is refused

	Client   *http.Client            // default http.DefaultClient, which goes by HTTPS_PROXY
	Progress func(done, total int64) // of a download; total is -1 when nobody knows. May be nil
}

// timeout bounds a download.
const timeout = 15 * time.Minute

// Remote tells whether the file comes over the network.
func (s Source) Remote() bool { return strings.Contains(s.From, "://") }

// File puts the file at path, where none may be, or nothing: what is not whole or not
// the one that was meant does not stay.
func (s Source) File(ctx context.Context, path string) (err error) {
	defer func() {
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	if !s.Remote() {
		st, err := os.Stat(s.From)
		if err == nil && !st.Mode().IsRegular() {
			err = errors.New("it is no file")
		}
		if err == nil {
			err = sparse.Clone(s.From, path, 0o644)
		}
		if err != nil {
			return nacre.Wrap(nacre.CodeInvalid, err, s.What+" cannot be read from "+s.From)
		}
	} else if err := s.download(ctx, path); err != nil {
		return err
	}
	return s.check(path)
}

func (s Source) download(ctx context.Context, path string) error {
	if !strings.HasPrefix(s.From, "https://") {
		return nacre.Errorf(nacre.CodeInvalid, "%s: %q is neither a path nor an https URL", s.What, s.From)
	}
	if s.SHA256 == "" {
		return nacre.Errorf(nacre.CodeInvalid, "%s: what is downloaded needs a SHA-256 that it is compared with", s.What)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := s.get(ctx, path)
	switch {
	case ctx.Err() != nil: // a connection that is closed in the middle may look like one that has ended
		return nacre.Wrap(nacre.CodeUnavailable, ctx.Err(), s.What+" was not downloaded to the end")
	case err == nil:
		return nil
	}
	var in *url.Error // which repeats the address
	if errors.As(err, &in) {
		err = in.Err
	}
	text := fmt.Sprintf("%s could not be downloaded from %s: %v", s.What, s.From, err)
	if s.Advice != "" {
		text += ". " + s.Advice
	}
	return nacre.Errorf(nacre.CodeUnavailable, "%s", text)
}

func (s Source) get(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.From, nil)
	if err != nil {
		return err
	}
	resp, err := cmp.Or(s.Client, http.DefaultClient).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server says %s", resp.Status)
	}
	if resp.ContentLength > s.Max {
		return fmt.Errorf("it has %d bytes, more than %d", resp.ContentLength, s.Max)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, &counted{r: io.LimitReader(resp.Body, s.Max+1), total: resp.ContentLength, tell: s.Progress})
	if err == nil && n > s.Max {
		err = fmt.Errorf("it has more than %d bytes", s.Max)
	}
	return errors.Join(err, f.Close())
}

func (s Source) check(path string) error {
	if s.SHA256 == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, s.SHA256) {
		return nacre.Errorf(nacre.CodeConflict, "%s from %s has the SHA-256 %s, want %s; it is not the one that was meant, and was not installed", s.What, s.From, got, s.SHA256)
	}
	return nil
}

// counted tells how much was read.
type counted struct {
	r           io.Reader
	done, total int64
	tell        func(done, total int64)
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.done += int64(n)
	if c.tell != nil {
		c.tell(c.done, c.total)
	}
	return n, err
}
