"""How initial values of the trained parts are made from a pool of collections with normal and abnormal images."""
