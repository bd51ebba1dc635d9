package admin

import (
	"context"
	"iter"
)

// Organizations yields all that match, newest first, page after page. An error
// is yielded last, with a zero value.
func (c *Client) Organizations(ctx context.Context, filter ListOrganizationsParams) iter.Seq2[Organization, error] {
	return items(filter.Cursor, func(cursor *string) ([]Organization, *string, error) {
		filter.Cursor = cursor
		page, err := c.ListOrganizations(ctx, filter)
		if err != nil {
			return nil, nil, err
		}
		return page.Items, page.NextCursor, nil
	})
}

// Keys yields an organization's keys, as [Client.Organizations] does.
func (c *Client) Keys(ctx context.Context, org string, filter ListKeysParams) iter.Seq2[Key, error] {
	return items(filter.Cursor, func(cursor *string) ([]Key, *string, error) {
		filter.Cursor = cursor
		page, err := c.ListKeys(ctx, org, filter)
		if err != nil {
			return nil, nil, err
		}
		return page.Items, page.NextCursor, nil
	})
}

// Callers yields callers, as [Client.Organizations] does.
func (c *Client) Callers(ctx context.Context, filter ListCallersParams) iter.Seq2[Caller, error] {
	return items(filter.Cursor, func(cursor *string) ([]Caller, *string, error) {
		filter.Cursor = cursor
		page, err := c.ListCallers(ctx, filter)
		if err != nil {
			return nil, nil, err
		}
		return page.Items, page.NextCursor, nil
	})
}

// Admins yields admins, as [Client.Organizations] does.
func (c *Client) Admins(ctx context.Context, filter ListAdminsParams) iter.Seq2[Admin, error] {
	return items(filter.Cursor, func(cursor *string) ([]Admin, *string, error) {
		filter.Cursor = cursor
		page, err := c.ListAdmins(ctx, filter)
		if err != nil {
			return nil, nil, err
		}
		return page.Items, page.NextCursor, nil
	})
}

// AuditLog yields the events of an organization's chain, or of the platform's
// when org is "", in the filter's order; newest first unless it says oldest.
func (c *Client) AuditLog(ctx context.Context, org string, filter ListAuditLogParams) iter.Seq2[AuditEvent, error] {
	return items(filter.Cursor, func(cursor *string) ([]AuditEvent, *string, error) {
		filter.Cursor = cursor
		page, err := c.ListAuditLog(ctx, org, filter)
		if err != nil {
			return nil, nil, err
		}
		return page.Items, page.NextCursor, nil
	})
}

// items holds one page at a time.
func items[T any](cursor *string, fetch func(cursor *string) ([]T, *string, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			page, next, err := fetch(cursor)
			if err == nil && next != nil && cursor != nil && *next == *cursor {
				// It would be the same page for ever.
				err = &Error{Status: 200, Code: CodeInvalidAnswer, Detail: "the service answered a page that leads to itself"}
			}
			if err != nil {
				var zero T
				yield(zero, err)
				return
			}
			for _, item := range page {
				if !yield(item, nil) {
					return
				}
			}
			if next == nil {
				return
			}
			cursor = next
		}
	}
}
