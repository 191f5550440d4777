"""Its being here puts this folder on the path, so that the tests of blocks find `network_specs` too."""
