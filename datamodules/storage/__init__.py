"""Files and folders on disks and behind URLs, members of archives, helper processes."""
