package cli

import (
	"bufio"
	"context"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// asksAPerson tells whether what is read is typed by somebody. /dev/null, which is what cron
// gives, is a device too, and nobody.
func asksAPerson(r io.Reader) bool {
	file, ok := r.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// ask puts a question on standard error and returns the line that is typed, without the spaces
// around it; what ends before is an empty line. It ends with ctx.
func (s *session) ask(ctx context.Context, question string) (string, error) {
	if _, err := io.WriteString(s.cmd.ErrOrStderr(), question); err != nil {
		return "", printed(err)
	}
	typed := make(chan string, 1)
	go func() { // a terminal cannot be told to stop reading; Ctrl-C ends the program, and this with it
		line, _ := bufio.NewReader(s.cmd.InOrStdin()).ReadString('\n')
		typed <- strings.TrimSpace(line)
	}()
	select {
	case line := <-typed:
		return line, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}
