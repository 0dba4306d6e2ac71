// Empty: lets the compiler take the function without a body in orders.go.
