// Package keystile asks a Keystile service whether a presented API key may do
// what a request wants, and protects net/http handlers with the answer.
//
// The secret never leaves the application: a [Client] asks with its SHA-256.
// Everything here fails closed. A zero [Decision] denies, an error means "not
// allowed", and a request that could not be decided gets 503.
//
//	client, err := keystile.New(os.Getenv("KEYSTILE_URL"), os.Getenv("KEYSTILE_TOKEN"))
//	if err != nil {
//		log.Fatal(err)
//	}
//	log.Fatal(http.ListenAndServe("127.0.0.1:8081", keystile.Protect(client)(api)))
//
// The package imports the standard library only.
package keystile
