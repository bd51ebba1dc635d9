package manage

import "time"

// List is one page. Next is the cursor of the page after it; "" after the last.
type List[T any] struct {
	Items []T
	Next  string
	// At is when; states of the items are as of then.
	At time.Time
}

// DefaultPage and MaxPage bound the items of a page.
const (
	DefaultPage = 50
	MaxPage     = 200
)

// more asks for one row beyond the page, to know whether there is another.
func (p Page) more() Page {
	p.Limit = p.size() + 1
	return p
}

func (p Page) size() int {
	if p.Limit <= 0 {
		return DefaultPage
	}
	return min(p.Limit, MaxPage)
}

// paged cuts the row that more asked for.
func paged[T any](items []T, p Page, at time.Time, cursor func(*T) string) List[T] {
	n := p.size()
	if len(items) <= n {
		return List[T]{Items: items, At: at}
	}
	return List[T]{Items: items[:n], Next: cursor(&items[n-1]), At: at}
}
