// Package client is the Go SDK of Nacre: sandboxes to run commands in, with
// files, terminals and previews.
//
//	c, err := client.New() // NACRE_API_KEY and NACRE_API_URL say where
//	sb, err := c.Create(ctx, client.Template("python"), client.Timeout(10*time.Minute))
//	defer sb.Kill(context.WithoutCancel(ctx))
//	res, err := sb.Run(ctx, "python3 -c 'print(6*7)'")
//	fmt.Print(res.Stdout)
//
// A [Client] speaks to the control plane; a [Sandbox] speaks to its guest
// directly. Both are safe for concurrent use, and one Client serves a whole
// program: it keeps the connections.
//
// Every call takes a context and ends with it. What a call leaves out has the
// server's default. Errors are [*Error] values that errors.Is compares with
// [ErrNotFound] and its neighbours; a command that fails is an [*ExitError].
// Only requests that change nothing are repeated after a network failure.
//
// The package works against any server of the Moru and E2B interface.
package client
