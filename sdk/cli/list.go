package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

const (
	// defaultListed is how many items a list prints unless --limit says more.
	defaultListed = 100
	// maxPage is the longest page that the service gives.
	maxPage = 200
)

// paging holds the flags of lists.
type paging struct {
	limit  int
	cursor string
}

func (p *paging) flags(cmd *cobra.Command) {
	cmd.Flags().IntVar(&p.limit, "limit", defaultListed, "how many to list at most; 0 lists all")
	cmd.Flags().StringVar(&p.cursor, "cursor", "", "go on where another list ended (next_cursor)")
}

// list is what JSON and YAML hold.
type list[T any] struct {
	Items      []T     `json:"items"`
	NextCursor *string `json:"next_cursor"`
}

// collect asks for pages until there are as many items as wanted.
func collect[T any](p paging, fetch func(cursor *string, limit *int) ([]T, *string, error)) (list[T], error) {
	found := list[T]{Items: []T{}}
	if p.limit < 0 {
		return found, usage(errors.New("--limit must not be negative"))
	}
	var cursor *string
	if p.cursor != "" {
		cursor = &p.cursor
	}
	for {
		size := maxPage
		if p.limit > 0 {
			size = min(size, p.limit-len(found.Items))
		}
		items, next, err := fetch(cursor, &size)
		if err != nil {
			return found, err
		}
		found.Items, found.NextCursor = append(found.Items, items...), next
		if next == nil || cursor != nil && *next == *cursor || p.limit > 0 && len(found.Items) >= p.limit {
			return found, nil
		}
		cursor = next
	}
}

// showList prints a list: in a table one row an item.
func showList[T any](s *session, what string, found list[T], header []string, row func(T) []string) error {
	err := s.show(found, func(p *page) {
		rows := make([][]string, len(found.Items))
		for i, item := range found.Items {
			rows[i] = row(item)
		}
		p.table(header, rows)
	})
	switch {
	case err != nil:
	case len(found.Items) == 0:
		s.say("no %s", what)
	case found.NextCursor != nil:
		s.say("there are more %s: --limit 0 lists all, --cursor %s goes on", what, *found.NextCursor)
	}
	return err
}
