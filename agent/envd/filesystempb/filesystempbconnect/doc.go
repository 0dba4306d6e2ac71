// Package filesystempbconnect holds the generated stubs of the envd protocol's filesystem service.
package filesystempbconnect
