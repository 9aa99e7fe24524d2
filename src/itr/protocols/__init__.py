"""Published evaluation protocols: `itr evaluate`."""
