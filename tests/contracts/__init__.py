"""Every plug-in that ships is put through the checks of its kind, without being named here."""
