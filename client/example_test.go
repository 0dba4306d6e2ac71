package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

// The whole of it: make a sandbox, run something in it, end it.
func Example() {
	ctx := context.Background()
	c, err := client.New() // NACRE_API_KEY and NACRE_API_URL
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.Create(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Kill(ctx)

	res, err := sb.Run(ctx, "python3 -c 'print(6*7)'")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(res.Stdout)
}

func ExampleClient_Create() {
	ctx := context.Background()
	c, err := client.New(client.WithAPIURL("http://127.0.0.1:3000"), client.WithAPIKey("e2b_..."))
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.Create(ctx,
		client.Template("base"),
		client.Timeout(10*time.Minute),
		client.Metadata(map[string]string{"project": "my-agent"}),
		client.Env(map[string]string{"DEBUG": "true"}),
		client.Internet(false),
		client.AllowOut("192.0.2.7", "198.51.100.0/24"),
	)
	switch {
	case errors.Is(err, client.ErrRateLimited):
		log.Fatal("the server is full: ", err)
	case err != nil:
		log.Fatal(err)
	}
	fmt.Println(sb.ID)
}

// A program that was started again finds its sandbox by the id.
func ExampleClient_Connect() {
	ctx := context.Background()
	c, err := client.New()
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.Connect(ctx, os.Getenv("MY_SANDBOX"))
	if errors.Is(err, client.ErrNotFound) {
		log.Fatal("it has ended")
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sb.IsRunning(ctx))
}

// A paused sandbox costs nothing but disk, and goes on where it was.
func ExampleSandbox_Pause() {
	ctx := context.Background()
	var sb *client.Sandbox // from Create

	p, err := sb.Start(ctx, "python3 train.py")
	if err != nil {
		log.Fatal(err)
	}
	if err := sb.Pause(ctx); err != nil && !errors.Is(err, client.ErrConflict) {
		log.Fatal(err) // it runs on
	}
	// Later, perhaps in another program:
	if err := sb.Resume(ctx, client.Timeout(time.Hour)); err != nil {
		log.Fatal(err) // it is paused as before
	}
	if _, err := sb.Attach(ctx, p.PID, client.Stdout(os.Stdout)); err != nil {
		log.Fatal(err)
	}
}

// A snapshot is kept before something risky and gone back to when it failed.
func ExampleSandbox_Restore() {
	ctx := context.Background()
	var sb *client.Sandbox // from Create

	before, err := sb.Snapshot(ctx, client.Comment("before the upgrade"), client.Keep(24*time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := sb.Run(ctx, "./upgrade.sh"); err != nil {
		if err := sb.Restore(ctx, before.ID); err != nil {
			log.Fatal(err)
		}
	}
}

// Ten copies of one prepared sandbox try ten things.
func ExampleClient_Fork() {
	ctx := context.Background()
	var c *client.Client   // from New
	var sb *client.Sandbox // from Create

	forks, err := c.Fork(ctx, sb.ID, 10, client.Timeout(10*time.Minute))
	if err != nil {
		log.Fatal(err) // none was made
	}
	for i, f := range forks {
		if f.Err != nil {
			log.Print("fork ", i, ": ", f.Err)
			continue
		}
		go f.Sandbox.Run(ctx, fmt.Sprintf("./attempt.sh %d", i))
	}
}

func ExampleClient_Snapshots() {
	ctx := context.Background()
	var c *client.Client // from New

	for s, err := range c.Snapshots(ctx, client.Name("nightly")) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(s.ID, s.CreatedAt, s.DiskUsed)
		if time.Since(s.CreatedAt) > 7*24*time.Hour {
			if err := c.DeleteSnapshot(ctx, s.ID); err != nil && !errors.Is(err, client.ErrConflict) {
				log.Fatal(err)
			}
		}
	}
}

func ExampleClient_List() {
	ctx := context.Background()
	c, err := client.New()
	if err != nil {
		log.Fatal(err)
	}
	old := map[string]string{"environment": "development"}
	for info, err := range c.List(ctx, client.Metadata(old), client.States(nacre.StateRunning)) {
		if err != nil {
			log.Fatal(err)
		}
		if err := c.Kill(ctx, info.ID); err != nil && !errors.Is(err, client.ErrNotFound) {
			log.Fatal(err)
		}
	}
}

// A command that fails is an *ExitError, which holds what it wrote.
func ExampleSandbox_Run() {
	ctx := context.Background()
	var sb *client.Sandbox // from Create

	_, err := sb.Run(ctx, "make test", client.Cwd("/home/user/project"), client.Timeout(5*time.Minute),
		client.Stdout(os.Stdout), client.Stderr(os.Stderr))
	var exit *client.ExitError
	switch {
	case errors.As(err, &exit):
		log.Fatal("the tests failed: ", exit.ExitCode)
	case errors.Is(err, client.ErrTimeout):
		log.Fatal("the tests took more than five minutes")
	case err != nil:
		log.Fatal(err)
	}
}

// A server in the sandbox is reached at a host name of its own.
func ExampleSandbox_Start() {
	ctx := context.Background()
	var sb *client.Sandbox // from Create

	p, err := sb.Start(ctx, "python3 -m http.server 8080", client.Stderr(os.Stderr))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("https://" + sb.Host(8080))
	<-time.After(time.Minute)
	if err := p.Kill(ctx); err != nil {
		log.Fatal(err)
	}
}

// As long as somebody needs the sandbox, its deadline is moved on.
func ExampleSandbox_SetTimeout() {
	ctx := context.Background()
	var sb *client.Sandbox // from Create

	tick := time.NewTicker(5 * time.Minute)
	defer tick.Stop()
	for range tick.C {
		if err := sb.SetTimeout(ctx, 10*time.Minute); err != nil {
			return // it has ended
		}
	}
}

func ExampleFiles() {
	ctx := context.Background()
	var sb *client.Sandbox // from Create

	if err := sb.Files.WriteFile(ctx, "data/in.txt", []byte("some text")); err != nil {
		log.Fatal(err)
	}
	r, err := sb.Files.Open(ctx, "data/in.txt")
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(os.Stdout, r); err != nil {
		log.Fatal(err)
	}
	if _, err := sb.Files.As("root").Write(ctx, "/etc/motd", strings.NewReader("welcome\n")); err != nil {
		log.Fatal(err)
	}
}

func ExampleFiles_Watch() {
	ctx := context.Background()
	var sb *client.Sandbox // from Create

	w, err := sb.Files.Watch(ctx, "src", true)
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()
	for e, err := range w.Events() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Op, e.Name)
	}
}

func ExampleSandbox_Terminal() {
	ctx := context.Background()
	var sb *client.Sandbox // from Create

	t, err := sb.Terminal(ctx, client.Size{Cols: 80, Rows: 24})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	go io.Copy(t, os.Stdin)
	if _, err := io.Copy(os.Stdout, t); err != nil {
		log.Fatal(err)
	}
	code, _ := t.Wait()
	os.Exit(code)
}

func ExampleQuote() {
	fmt.Println(client.Quote("grep", "-r", "it's", "some dir"))
	// Output: grep -r 'it'\''s' 'some dir'
}
