"""Files and folders on disks and behind URLs, members of archives, writing that completes, helper processes."""
