package agent

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
	"golang.org/x/sys/unix"
)

const (
	copyBuffer = 256 << 10
	// maxUploads bounds the files of one request: each stays in the answer.
	maxUploads = 10_000
	// drainLimit is how much of a refused upload is read, so that a client that
	// sends before it listens gets to see the answer.
	drainLimit = 16 << 20
)

// fileAccess decides who may use /files and as whom: by the header when there is
// one, else by the URL's signature.
func (a *Agent) fileAccess(r *http.Request, q url.Values, op string) (account, error) {
	id := a.id.get()
	if !id.inited {
		return account{}, nacre.Errorf(nacre.CodeUnauthenticated, "the guest was not initialised yet")
	}
	if err := checkFileAccess(id.accessToken, r.Header, q, op, time.Now()); err != nil {
		return account{}, err
	}
	return a.user(q.Get("username"))
}

func checkFileAccess(token string, h http.Header, q url.Values, op string, now time.Time) error {
	if token == "" {
		return nil
	}
	if given := h.Get(envd.HeaderAccessToken); given != "" {
		if !sameToken(given, token) {
			return nacre.Errorf(nacre.CodeUnauthenticated, "invalid access token")
		}
		return nil
	}
	signature := q.Get("signature")
	if signature == "" {
		return nacre.Errorf(nacre.CodeUnauthenticated, "missing signature query parameter or %s header", envd.HeaderAccessToken)
	}
	expires := int64(0)
	if s := q.Get("signature_expiration"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nacre.Errorf(nacre.CodeUnauthenticated, "invalid signature expiration")
		}
		expires = n
	}
	if !envd.CheckSignature(signature, q.Get("path"), op, q.Get("username"), token, expires) {
		return nacre.Errorf(nacre.CodeUnauthenticated, "invalid signature")
	}
	if expires != 0 && expires < now.Unix() {
		return nacre.Errorf(nacre.CodeUnauthenticated, "signature is already expired")
	}
	return nil
}

func (a *Agent) handleDownload(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	acc, err := a.fileAccess(r, q, envd.OpRead)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	path, err := a.resolve(acc, q.Get("path"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	f, fi, err := openRegular(path)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	defer func() { _ = f.Close() }()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": validText(filepath.Base(path))}))
	if fi.Size() == 0 {
		servePseudo(w, r, f)
		return
	}
	if r.Header.Get("Range") != "" {
		w = &rangeWriter{ResponseWriter: w, size: fi.Size()}
	}
	http.ServeContent(w, r, "", time.Time{}, f) // ranges, HEAD, Content-Length
}

// rangeWriter gives the refusal of a range the form of every other error; the
// standard library answers with a line of text.
type rangeWriter struct {
	http.ResponseWriter
	size    int64
	refused bool
}

func (w *rangeWriter) WriteHeader(status int) {
	if w.refused = status == http.StatusRequestedRangeNotSatisfiable; w.refused {
		writeError(w.ResponseWriter, status, fmt.Sprintf("the range is not within the file, which has %d bytes", w.size))
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *rangeWriter) Write(b []byte) (int, error) {
	if w.refused {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// ReadFrom keeps the way past this process's memory.
func (w *rangeWriter) ReadFrom(r io.Reader) (int64, error) { return io.Copy(w.ResponseWriter, r) }

// servePseudo serves a file that says it is empty: it is, or it is one of the
// kernel's, whose content has no size before it is read.
func servePseudo(w http.ResponseWriter, r *http.Request, f *os.File) {
	buf := make([]byte, 64<<10)
	n, err := io.ReadFull(f, buf)
	if err != nil { // the end, or unreadable: what is there is all
		w.Header().Set("Content-Length", strconv.Itoa(n))
	}
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	if _, werr := w.Write(buf[:n]); werr != nil || err != nil {
		return
	}
	_, _ = io.Copy(w, f)
}

// openRegular opens a file for reading; what could block or has no end is refused.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, nil, fileError(err, path)
	}
	if err := mustBeRegular(fi, path); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fileError(err, path)
	}
	fi, err = f.Stat() // it may be another file than a moment ago
	if err == nil {
		err = mustBeRegular(fi, path)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, fileError(err, path)
	}
	return f, fi, nil
}

func mustBeRegular(fi fs.FileInfo, path string) error {
	switch {
	case fi.Mode().IsRegular():
		return nil
	case fi.IsDir():
		return nacre.Invalidf("path", "path is a directory: '%s'", validText(path))
	}
	return nacre.Invalidf("path", "path is not a regular file: '%s'", validText(path))
}

func (a *Agent) handleUpload(w http.ResponseWriter, r *http.Request) {
	a.watchers.sync()
	q := r.URL.Query()
	acc, err := a.fileAccess(r, q, envd.OpWrite)
	var answer []envd.FileAnswer
	if err == nil {
		answer, err = a.upload(acc, r, q)
	}
	if err != nil {
		_, _ = io.CopyN(io.Discard, r.Body, drainLimit)
		a.fail(w, r, err)
		return
	}
	a.watchers.sync()
	writeJSON(w, http.StatusOK, answer)
}

// upload writes the files of one request, in order. A failure leaves the ones
// before it.
func (a *Agent) upload(acc account, r *http.Request, q url.Values) ([]envd.FileAnswer, error) {
	body := io.Reader(r.Body)
	size := r.ContentLength
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip":
		zr, err := gzip.NewReader(body)
		if err != nil {
			return nil, nacre.Invalidf("body", "the body is not gzip")
		}
		body, size = zr, -1
	default:
		return nil, nacre.Invalidf("Content-Encoding", "content encoding '%s' is not understood: send identity or gzip", validText(enc))
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return nil, nacre.Invalidf("Content-Type", "Content-Type must be multipart/form-data or application/octet-stream")
	}
	if media == "application/octet-stream" {
		if !q.Has("path") {
			return nil, nacre.Invalidf("path", "path is missing")
		}
		f, err := a.writeFile(acc, q.Get("path"), body, size)
		if err != nil {
			return nil, err
		}
		return []envd.FileAnswer{f}, nil
	}
	if media != "multipart/form-data" || params["boundary"] == "" {
		return nil, nacre.Invalidf("Content-Type", "Content-Type must be multipart/form-data or application/octet-stream")
	}
	// The parser reads in small steps; the socket is read in large ones.
	mr := multipart.NewReader(bufio.NewReaderSize(body, copyBuffer), params["boundary"])
	return a.uploadParts(acc, mr, q, size)
}

func (a *Agent) uploadParts(acc account, mr *multipart.Reader, q url.Values, size int64) ([]envd.FileAnswer, error) {
	answer := []envd.FileAnswer{}
	for {
		part, err := mr.NextRawPart()
		if errors.Is(err, io.EOF) && len(answer) == 0 {
			return nil, nacre.Invalidf("body", "the body has no part named \"file\"")
		}
		if errors.Is(err, io.EOF) {
			return answer, nil
		}
		if err != nil {
			return nil, nacre.Wrap(nacre.CodeInvalid, err, "the multipart body is broken or incomplete")
		}
		name, filename, err := partNames(part.Header.Get("Content-Disposition"))
		if err != nil {
			return nil, err
		}
		if name != "file" {
			continue
		}
		path := filename
		if q.Get("path") != "" {
			path = q.Get("path")
			if len(answer) > 0 {
				return nil, nacre.Invalidf("path", "the request has several files but one path")
			}
		} else if filename == "" || q.Has("path") { // for an empty path a client sends the filename "undefined"
			return nil, nacre.Invalidf("path", "a file has no name: give path, or a filename in its part")
		}
		if len(answer) == maxUploads {
			return nil, nacre.Errorf(nacre.CodeInvalid, "more than %d files in one request", maxUploads)
		}
		f, err := a.writeFile(acc, path, part, size)
		if err != nil {
			return nil, err
		}
		answer = append(answer, f)
	}
}

// partNames reads a part's Content-Disposition. The filename keeps its
// directories, which the standard library would strip; clients percent-encode
// the quote and control characters in it, as HTML forms do.
func partNames(header string) (name, filename string, err error) {
	disposition, params, err := mime.ParseMediaType(header)
	if err != nil || disposition != "form-data" {
		return "", "", nacre.Invalidf("body", "a part of the body has no valid Content-Disposition")
	}
	return formUnescape(params["name"]), formUnescape(params["filename"]), nil
}

// formUnescape undoes the HTML form encoding: %22 and the control characters.
func formUnescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil && (v == '"' || v < 0x20) {
				b.WriteByte(byte(v))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// writeFile replaces a file by what r gives. It is created in place and given
// to the user before its content comes: watchers see exactly that.
func (a *Agent) writeFile(acc account, asked string, r io.Reader, size int64) (envd.FileAnswer, error) {
	none := envd.FileAnswer{}
	path, err := a.resolve(acc, asked)
	if err != nil {
		return none, err
	}
	old, err := os.Stat(path)
	if err == nil {
		if err := mustBeRegular(old, path); err != nil {
			return none, err
		}
	}
	if err := makeParents(filepath.Dir(path), acc); err != nil {
		return none, err
	}
	if err := enoughSpace(filepath.Dir(path), old, size); err != nil {
		return none, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0o644)
	if err != nil {
		return none, fileError(err, path)
	}
	if fi, serr := f.Stat(); serr != nil {
		err = serr
	} else if err = mustBeRegular(fi, path); err == nil {
		err = f.Chown(int(acc.uid), int(acc.gid))
	}
	if err == nil {
		err = fill(f, r)
	}
	err = errors.Join(err, f.Close())
	if err != nil {
		if old == nil {
			_ = os.Remove(path) // half a file is worse than none
		}
		return none, uploadError(err, path)
	}
	return envd.FileAnswer{Name: filepath.Base(path), Type: "file", Path: path}, nil
}

// enoughSpace refuses what cannot fit before an existing file is given up for it.
func enoughSpace(dir string, old fs.FileInfo, size int64) error {
	var st unix.Statfs_t
	if size <= 0 || unix.Statfs(dir, &st) != nil || st.Blocks == 0 {
		return nil
	}
	free := int64(st.Bavail) * st.Bsize
	if os.Getuid() == 0 {
		free = int64(st.Bfree) * st.Bsize
	}
	// A sandbox may say that it has almost 1<<63 bytes: nothing is added to that.
	need := size - 64<<10 // the multipart frame is not part of the file
	if old != nil {
		need -= old.Size()
	}
	if need > free {
		return nacre.Errorf(nacre.CodeNoSpace, "not enough disk space: %d bytes are needed, %d are free", size, free)
	}
	return nil
}

// readError marks what failed on the client's side of an upload.
type readError struct{ err error }

func (e readError) Error() string { return e.err.Error() }
func (e readError) Unwrap() error { return e.err }

// fill copies in large writes, so that a small file is one.
func fill(f *os.File, r io.Reader) error {
	buf := make([]byte, copyBuffer)
	for {
		n, err := 0, error(nil)
		for n < len(buf) && err == nil {
			var m int
			m, err = r.Read(buf[n:])
			n += m
		}
		if n > 0 {
			if _, werr := f.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return readError{err}
		}
	}
}

func uploadError(err error, path string) error {
	var re readError
	if errors.As(err, &re) {
		return nacre.Wrap(nacre.CodeInvalid, err, "the upload of '"+validText(path)+"' ended before its end: send it again")
	}
	return fileError(err, path)
}
