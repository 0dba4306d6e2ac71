// Package processpb holds the generated messages of the envd protocol's process service.
package processpb
