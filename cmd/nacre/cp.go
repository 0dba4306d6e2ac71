package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
	"github.com/nacrehq/nacre/internal/progress"
)

func newCpCommand(g *globals) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "cp SRC DST",
		Short: "Copy files and directories into and out of sandboxes",
		Long: "cp copies from SRC to DST. ID:PATH is a path in a sandbox, relative ones begin at the user's home; \"-\" is\n" +
			"standard input or output. A DST that is a directory, or ends with '/', receives SRC under its own name.\n" +
			"Directories are copied with all that is in them.",
		Example: "  nacre cp app.py ID:\n" +
			"  nacre cp src ID:/srv/app\n" +
			"  nacre cp ID:results/ .\n" +
			"  tar c src | nacre cp - ID:/tmp/src.tar\n" +
			"  nacre cp ID:/etc/os-release -",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			j := &copyJob{stdin: cmd.InOrStdin(), stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr()}
			src, err := g.parsePlace(cmd.Context(), args[0], user)
			if err != nil {
				return err
			}
			dst, err := g.parsePlace(cmd.Context(), args[1], user)
			if err != nil {
				return err
			}
			if !g.json && dst.path != "-" && term.IsTerminal(int(os.Stderr.Fd())) {
				j.bar = progress.New(os.Stderr)
			}
			err = j.run(cmd.Context(), src, dst)
			if j.bar != nil {
				j.bar.Done()
			}
			if err != nil {
				return err
			}
			if g.json && dst.path != "-" {
				return printJSON(cmd.OutOrStdout(), j.copied())
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&user, "user", "u", "", "user in the sandbox, such as root")
	return cmd
}

// place is one side of a copy: on this host when sb is nil.
type place struct {
	sb    *client.Sandbox
	files *client.Files
	user  string
	path  string
}

// parsePlace takes "ID:PATH" for a sandbox's file and anything else for a local
// one; a local name that looks like the former is reached as "./ID:PATH".
func (g *globals) parsePlace(ctx context.Context, arg, user string) (place, error) {
	id, rest, ok := strings.Cut(arg, ":")
	if !ok || !nacre.SandboxID(id).Valid() {
		if arg == "" {
			return place{}, errors.New("an empty path; want PATH, ID:PATH or \"-\"")
		}
		return place{path: arg}, nil
	}
	_, sb, err := g.sandbox(ctx, id)
	if err != nil {
		return place{}, err
	}
	if rest == "" {
		rest = "~/"
	}
	files := sb.Files
	if user != "" {
		files = files.As(user)
	}
	return place{sb: sb, files: files, user: user, path: rest}, nil
}

// copyJob counts what is copied, for the bar and for the JSON.
type copyJob struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	bar            *progress.Bar

	done, total atomic.Int64
	mu          sync.Mutex
	list        []copiedFile
}

// copiedFile is an element of the command's JSON.
type copiedFile struct {
	ID    string `json:"id,omitempty"` // of the sandbox that it was copied to
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

func (j *copyJob) run(ctx context.Context, src, dst place) error {
	switch {
	case src.sb == nil && dst.sb == nil:
		return errors.New("neither side is in a sandbox, which is written ID:PATH; `nacre ps` lists the ids")
	case src.sb != nil && dst.sb != nil:
		return j.across(ctx, src, dst)
	case src.sb == nil:
		return j.upload(ctx, src.path, dst)
	}
	return j.download(ctx, src, dst.path)
}

// across copies one file from a sandbox to another.
func (j *copyJob) across(ctx context.Context, src, dst place) error {
	info, err := src.files.Stat(ctx, src.path)
	if err != nil {
		return fmt.Errorf("%s: %w", src.path, err)
	}
	if info.Dir {
		return errors.New("between sandboxes only files are copied; copy the directory to this host first")
	}
	target, err := dst.target(ctx, path.Base(src.path))
	if err != nil {
		return err
	}
	r, err := src.files.Open(ctx, src.path)
	if err != nil {
		return fmt.Errorf("%s: %w", src.path, err)
	}
	defer r.Close()
	j.total.Store(info.Size)
	return j.send(ctx, dst, target, r)
}

// target is where a file or directory called name goes: into a directory that
// exists or is meant, else to the path itself.
func (p place) target(ctx context.Context, name string) (string, error) {
	into := strings.HasSuffix(p.path, "/")
	if !into {
		info, err := p.files.Stat(ctx, p.path)
		if err != nil && !errors.Is(err, client.ErrNotFound) {
			return "", fmt.Errorf("%s: %w", p.path, err)
		}
		into = err == nil && info.Dir
	}
	if !into {
		return p.path, nil
	}
	if name == "-" {
		return "", fmt.Errorf("%s is a directory; name the file that standard input goes to", p.path)
	}
	return path.Join(p.path, name), nil
}

// send writes one file in a sandbox.
func (j *copyJob) send(ctx context.Context, dst place, target string, r io.Reader) error {
	n := &countingReader{r: r, job: j}
	info, err := dst.files.Write(ctx, target, n)
	if err != nil {
		return fmt.Errorf("write %s in the sandbox: %w", target, err)
	}
	j.add(copiedFile{ID: dst.sb.ID, Path: info.Path, Bytes: n.n})
	return nil
}

func (j *copyJob) add(f copiedFile) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.list = append(j.list, f)
}

// copied lists what was copied, by path: files travel side by side.
func (j *copyJob) copied() []copiedFile {
	out := append([]copiedFile{}, j.list...)
	slices.SortFunc(out, func(a, b copiedFile) int { return strings.Compare(a.Path, b.Path) })
	return out
}

func (j *copyJob) progress(n int) {
	done := j.done.Add(int64(n))
	if j.bar == nil {
		return
	}
	// The step's name stays, for a new name begins a new line.
	j.bar.Set("copying", done, j.total.Load())
}

// note tells of something that was left out.
func (j *copyJob) note(format string, args ...any) {
	fmt.Fprintf(j.stderr, "nacre: "+format+"\n", args...)
}

// countingReader tells the job of what is read.
type countingReader struct {
	r   io.Reader
	job *copyJob
	n   int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	c.job.progress(n)
	return n, err
}

// localName is the last part of a path of the user's, "" for one without, such
// as "/" or "..".
func localName(p string) string {
	abs, err := filepath.Abs(p)
	if err != nil {
		return ""
	}
	if name := filepath.Base(abs); name != string(filepath.Separator) {
		return name
	}
	return ""
}
