package base

// Cached tells whether Build would find its image in the cache and so needs
// neither tools nor network.
func Cached(cacheDir string) bool {
	r, err := newRecipe(host{etc: "/etc"})
	if err != nil {
		return false
	}
	_, ok := cached(cacheDir, r.hash())
	return ok
}
