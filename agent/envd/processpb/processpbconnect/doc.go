// Package processpbconnect holds the generated stubs of the envd protocol's process service.
package processpbconnect
