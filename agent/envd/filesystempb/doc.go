// Package filesystempb holds the generated messages of the envd protocol's filesystem service.
package filesystempb
