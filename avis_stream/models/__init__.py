"""The network: stateless modules, shared by the offline and the online path."""
