// Package admin manages a Keystile service: organizations, keys, callers,
// admins and the audit log. Its types and requests are generated from the
// service's OpenAPI document; start with [New].
//
//	client, err := admin.New(os.Getenv("KEYSTILE_URL"), os.Getenv("KEYSTILE_ADMIN_TOKEN"))
//	…
//	change, err := client.RevokeKey(ctx, "key_…")
//	…
//	fmt.Printf("denied on %d of %d replicas\n", change.Effective.Acknowledged, change.Effective.Replicas)
package admin
