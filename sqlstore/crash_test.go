package sqlstore

func crashChild() {}
