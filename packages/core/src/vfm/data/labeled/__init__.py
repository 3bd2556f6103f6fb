"""Images with one or several labels (`data.labeled`, `data.tagged`, `data.digits`, `data.caption_labels`)."""
