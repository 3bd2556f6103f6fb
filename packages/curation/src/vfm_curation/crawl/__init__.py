"""Links of images with texts from crawl files."""
